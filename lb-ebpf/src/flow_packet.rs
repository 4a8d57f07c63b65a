//! What the flow path needs to know of a packet, whichever program parsed it.

use lb_common::{conntrack::Segment, flow::protocol};

/// A TCP or UDP packet, parsed. Lives on the stack of the program; subprograms borrow it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct FlowPacket<F> {
    /// The 5-tuple as it lies in the packet.
    pub(crate) flow: F,
    /// IP bytes: header and payload.
    pub(crate) length: u32,
    /// TCP sequence number, host order.
    pub(crate) sequence: u32,
    /// TCP acknowledgement number, host order.
    pub(crate) acknowledgement: u32,
    /// Sequence numbers the segment takes: payload bytes, SYN and FIN.
    pub(crate) sequence_length: u32,
    /// The current tick.
    pub(crate) now: u32,
    /// Interface index the packet came in by.
    pub(crate) ingress: u32,
    /// IP protocol number: 6 or 17.
    pub(crate) protocol: u32,
    /// TCP flags byte; 0 for UDP.
    pub(crate) tcp_flags: u32,
}

impl<F> FlowPacket<F> {
    /// Whether it is TCP.
    #[inline(always)]
    pub(crate) const fn is_tcp(&self) -> bool {
        self.protocol == protocol::TCP as u32
    }

    /// What the TCP flags say.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a byte widened for alignment"
    )]
    pub(crate) const fn segment(&self) -> Segment {
        Segment::of(self.tcp_flags as u8)
    }

    /// IP protocol number.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a byte widened for alignment"
    )]
    pub(crate) const fn protocol(&self) -> u8 {
        self.protocol as u8
    }
}

/// What a step of the flow path came to. A plain number, since the compiler's BPF back end cannot
/// return aggregates from the out-of-line functions that are the steps.
#[derive(Clone, Copy, Eq, PartialEq)]
#[repr(transparent)]
#[must_use]
pub(crate) struct Step(pub(crate) u32);

impl Step {
    /// The entry is complete: rewrite and send.
    pub(crate) const FORWARD: Self = Self(0);
    /// The flow is not known here; the next step may know it.
    pub(crate) const MISS: Self = Self(1);
    /// XDP cannot do it: leave the packet, unmodified, to TCX.
    pub(crate) const HAND_OVER: Self = Self(2);
    /// The entry is complete but for its route, which must be looked up.
    pub(crate) const ROUTE: Self = Self(3);
    /// As [`Step::ROUTE`], for the first packet of a tick.
    pub(crate) const ROUTE_OF_TICK: Self = Self(4);
    /// A backend was chosen for a new flow: route, mode and claim are to follow.
    pub(crate) const CHOSEN: Self = Self(5);
    /// As [`Step::CHOSEN`]: the client's address is kept unless the client is the backend's neighbour.
    pub(crate) const CHOSEN_KEEPING_SOURCE: Self = Self(6);

    const REASON: u32 = 0x100;

    /// The packet is not forwarded.
    #[inline(always)]
    pub(crate) const fn refuse(reason: lb_common::reason::Reason) -> Self {
        Self(Self::REASON + reason as u32)
    }

    /// The number of the reason for which the packet is not forwarded.
    #[inline(always)]
    pub(crate) const fn reason(self) -> Option<u32> {
        if self.0 >= Self::REASON {
            Some(self.0 - Self::REASON)
        } else {
            None
        }
    }
}
