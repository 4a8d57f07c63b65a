//! `lb_bench_reference`: a fixed amount of work, the yardstick other rows are held against. It reads the
//! 5-tuple, looks it up in a table of 65,536 entries, writes addresses and ports back and returns
//! XDP_TX. Nothing of the data path is in it: **a change here makes every baseline worthless.**

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_TX},
    btf_maps::HashMap,
    macros::btf_map,
    programs::XdpContext,
};
use lb_common::bench::{REFERENCE_KEYS, Reference, ReferenceKey};

use crate::packet::Packet;

#[btf_map]
static BENCH_REFERENCE: HashMap<ReferenceKey, Reference, REFERENCE_KEYS> = HashMap::new();

const PROTOCOL: usize = 23;
const SOURCE: usize = 26;
const DESTINATION: usize = 30;
const PORTS: usize = 34;

/// One packet.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext) -> u32 {
    let packet = Packet::new(ctx.data(), ctx.data_end());
    let Some(view) = packet.view::<54>() else {
        return XDP_DROP;
    };
    let key = ReferenceKey {
        words: [
            view.u32::<SOURCE>(),
            view.u32::<DESTINATION>(),
            view.u32::<PORTS>(),
            view.u8::<PROTOCOL>() as u32,
        ],
    };
    // SAFETY: nothing is removed from the table while the program runs.
    let Some(found) = (unsafe { BENCH_REFERENCE.get(key) }) else {
        return XDP_DROP;
    };
    view.set_u32::<SOURCE>(found.words[0]);
    view.set_u32::<DESTINATION>(found.words[1]);
    view.set_u32::<PORTS>(found.words[2]);
    XDP_TX
}
