//! Time in ticks of about a second, from jiffies: the cheapest clock there is (an inlined load).

use aya_ebpf::helpers::generated::bpf_jiffies64;
use lb_common::conntrack::TICK_MASK;

use crate::tables::config;

/// The current tick.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "masked to 24 bits")]
pub(crate) fn tick() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    let jiffies = unsafe { bpf_jiffies64() };
    (jiffies >> (config!(tick_shift) & 63)) as u32 & TICK_MASK
}
