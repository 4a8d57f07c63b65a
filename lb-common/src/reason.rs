//! Why a packet was not balanced, what became of it, and the numbers both are counted under.

/// What leaves the node's hook: the one verdict type.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Verdict {
    /// The packet goes on, unmodified: from XDP to TCX, from TCX to the stack.
    Pass,
    /// The packet ends here.
    Drop,
}

macro_rules! counted {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal: $label:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum $name { $($(#[$vdoc])* $variant = $number),+ }

        impl $name {
            /// Every value, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Number of values.
            pub const COUNT: u32 = 0 $(+ { let _: Self = Self::$variant; 1 })+;

            /// The metric label and the word in `lbctl`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }
        }
    };
}

counted! {
    /// Why a packet left the load balancer without being forwarded by it.
    ///
    /// Numbers are ABI: add at the end, never reuse.
    pub enum Reason {
        /// Not IP at all, or a frame whose tag we do not follow.
        NotIp = 0: "not_ip",
        /// Neither address belongs to a rule or a flow of ours.
        NotOurs = 1: "not_ours",
        /// The headers promise more bytes than the packet has.
        Truncated = 2: "truncated",
        /// A fragment to a VIP whose first fragment is unknown.
        Fragment = 3: "fragment",
        /// IPv6 extension headers before the transport header, to a VIP.
        ExtensionHeader = 4: "extension_header",
        /// A protocol we do not balance, to a VIP.
        UnsupportedProtocol = 5: "unsupported_protocol",
        /// A VIP, but no frontend for this port and protocol.
        NoFrontend = 6: "no_frontend",
        /// A frontend whose service has no usable endpoint anywhere: rejected.
        NoEndpoint = 7: "no_endpoint",
        /// A `Local` policy without an endpoint on this node: dropped silently.
        NoLocalEndpoint = 8: "no_local_endpoint",
        /// SYN-less TCP to a frontend, and no flow knows it: dropped.
        UnknownFlow = 9: "unknown_flow",
        /// SYN-less TCP to a frontend, and no flow knows it: left to the stack.
        UnknownFlowToStack = 10: "unknown_flow_to_stack",
        /// A packet to an SNAT address of ours which no flow knows.
        SnatMiss = 11: "snat_miss",
        /// A reply of a gateway backend which no flow knows.
        GatewayMiss = 12: "gateway_miss",
        /// Every SNAT port tried was taken, by flows that do not give it up.
        SnatExhausted = 13: "snat_exhausted",
        /// No SNAT address for the device the packet must leave by.
        NoSnatAddress = 14: "no_snat_address",
        /// The flow table is nearly full: new TCP flows are refused.
        FlowTableFull = 15: "flow_table_full",
        /// An entry could not be written for another cause.
        InsertFailed = 16: "insert_failed",
        /// No route to the next hop.
        NoRoute = 17: "no_route",
        /// TTL or hop limit would reach zero.
        TtlExceeded = 18: "ttl_exceeded",
        /// Longer than the path takes: answered with "too big".
        TooBig = 19: "too_big",
        /// An ICMP error that quotes no flow of ours.
        IcmpUnmatched = 20: "icmp_unmatched",
        /// An ICMP message to a VIP other than an echo request or an error.
        IcmpOther = 21: "icmp_other",
        /// A reply of ours was held back by the rate limit.
        RateLimited = 22: "rate_limited",
        /// The kernel refused to change or send the packet.
        HelperFailed = 23: "helper_failed",
        /// The configured service or backend id has no entry: the tables contradict themselves.
        BrokenTable = 24: "broken_table",
        /// IP version or header length field is impossible.
        Malformed = 25: "malformed",
        /// The source lies outside the service's source ranges.
        SourceRange = 26: "source_range",
        /// An address of a service network (`ServiceCIDR`) that no Service has.
        UnallocatedAddress = 27: "unallocated_address",
        /// Another layout of the tables serves: left to its programs.
        Standby = 28: "standby",
        /// Would begin a flow or change one's state while the tables are copied: TCP repeats it.
        Frozen = 29: "frozen",
        /// A flow of the node's own stack, older than our frontend.
        StackFlow = 30: "stack_flow",
    }
}

counted! {
    /// What we did to a packet, and what happened on the side.
    ///
    /// Numbers are ABI: add at the end, never reuse.
    pub enum Event {
        /// Rewritten and sent by XDP.
        XdpForwarded = 0: "xdp_forwarded",
        /// Rewritten and sent by TCX.
        TcxForwarded = 1: "tcx_forwarded",
        /// Rewritten and given to the node's own stack.
        Delivered = 2: "delivered",
        /// A reply of the node's own stack, rewritten at egress.
        EgressForwarded = 3: "egress_forwarded",
        /// XDP left a packet of ours to TCX.
        HandedToTcx = 4: "handed_to_tcx",
        /// An ICMP error, translated and sent on.
        IcmpTranslated = 5: "icmp_translated",
        /// An echo reply of ours.
        EchoReply = 6: "echo_reply",
        /// A TCP RST of ours.
        ResetSent = 7: "reset_sent",
        /// An ICMP "port unreachable" of ours.
        UnreachableSent = 8: "unreachable_sent",
        /// An ICMP "fragmentation needed" or "packet too big" of ours.
        TooBigSent = 9: "too_big_sent",
        /// An ICMP "time exceeded" of ours.
        TimeExceededSent = 10: "time_exceeded_sent",
        /// A flow was created.
        FlowCreated = 11: "flow_created",
        /// A flow was promoted to established.
        FlowPromoted = 12: "flow_promoted",
        /// A proven flow could not be promoted; it goes on as embryonic.
        PromotionFailed = 13: "promotion_failed",
        /// A flow was closed by FIN or RST.
        FlowClosed = 14: "flow_closed",
        /// A closed flow left the table.
        FlowRetired = 15: "flow_retired",
        /// A UDP flow whose backend stopped serving got another.
        FlowReselected = 16: "flow_reselected",
        /// An SNAT port of an embryonic flow was taken over by a newer one.
        SnatTakenOver = 17: "snat_taken_over",
        /// XDP redirect failed after the verdict (`xdp_redirect_err`).
        RedirectFailed = 18: "redirect_failed",
        /// Frames lost in a device's transmit queue after the verdict (`xdp_devmap_xmit`).
        TransmitFailed = 19: "transmit_failed",
        /// An idle flow was deleted by the agent.
        FlowExpired = 20: "flow_expired",
        /// An RST too far from the window changed nothing.
        ResetImplausible = 21: "reset_implausible",
        /// A flow was ended by the agent, since its backend's drain deadline had passed.
        FlowEnded = 22: "flow_ended",
    }
}

impl Reason {
    /// The one place where fail-open and fail-closed are decided.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::NotIp
            | Self::NotOurs
            | Self::UnsupportedProtocol
            | Self::UnknownFlowToStack
            | Self::Standby
            | Self::StackFlow => Verdict::Pass,
            Self::Truncated
            | Self::Fragment
            | Self::ExtensionHeader
            | Self::NoFrontend
            | Self::NoEndpoint
            | Self::NoLocalEndpoint
            | Self::UnknownFlow
            | Self::SnatMiss
            | Self::GatewayMiss
            | Self::SnatExhausted
            | Self::NoSnatAddress
            | Self::FlowTableFull
            | Self::InsertFailed
            | Self::NoRoute
            | Self::TtlExceeded
            | Self::TooBig
            | Self::IcmpUnmatched
            | Self::IcmpOther
            | Self::RateLimited
            | Self::HelperFailed
            | Self::BrokenTable
            | Self::Malformed
            | Self::SourceRange
            | Self::UnallocatedAddress
            | Self::Frozen => Verdict::Drop,
        }
    }
}

/// An index into `COUNTERS`: events first, with room to grow, then reasons.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Counter {
    /// Something we did.
    Event(Event),
    /// Why we did not balance.
    Reason(Reason),
}

impl Counter {
    /// Index of the first reason.
    const REASONS: u32 = 64;
    /// Elements of `COUNTERS`.
    pub const CAPACITY: u32 = 128;

    /// Index into `COUNTERS`.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        match self {
            Self::Event(event) => event as u32,
            Self::Reason(reason) => Self::REASONS + reason as u32,
        }
    }

    /// The name, unique over both kinds.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Event(event) => event.name(),
            Self::Reason(reason) => reason.name(),
        }
    }

    /// Every counter.
    pub fn all() -> impl Iterator<Item = Self> {
        let events = Event::ALL.iter().copied().map(Self::Event);
        events.chain(Reason::ALL.iter().copied().map(Self::Reason))
    }
}

const _: () = assert!(Event::COUNT <= Counter::REASONS);
const _: () = assert!(Counter::REASONS + Reason::COUNT <= Counter::CAPACITY);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_are_dense_and_names_unique() {
        assert!(
            Reason::ALL
                .iter()
                .enumerate()
                .all(|(i, &r)| r as usize == i)
        );
        assert!(Event::ALL.iter().enumerate().all(|(i, &e)| e as usize == i));
        let names: BTreeSet<_> = Counter::all().map(Counter::name).collect();
        assert_eq!(names.len(), Counter::all().count());
        let indices: BTreeSet<_> = Counter::all().map(Counter::index).collect();
        assert_eq!(indices.len(), Counter::all().count());
    }
}
