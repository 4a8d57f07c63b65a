//! Functions the kernel verifies once.
//!
//! The verifier follows every path through a program, and with it a function of its own as often as there
//! are different states to call it in. Only what is *global* in the object's BTF it verifies by itself,
//! for any arguments: a scalar returned, scalars and pointers to plain memory taken, which may be null
//! (Linux 5.12). The steps of the flow path are such functions, or `lb_ingress` would be beyond the
//! verifier's limit of a million instructions.

/// Declares a step `fn(packet, entry) -> Step`, generic over the family, over a function of the same
/// signature and two symbols, one for each family.
macro_rules! step {
    ($(#[$doc:meta])* $name:ident = $body:ident as $v4:ident, $v6:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name<F: $crate::family::Family>(
            packet: &$crate::flow_packet::FlowPacket<F::Flow>,
            out: &mut F::Entry,
        ) -> $crate::flow_packet::Step {
            let packet = core::ptr::from_ref(packet);
            let out = core::ptr::from_mut(out);
            $crate::flow_packet::Step(if F::AF == $crate::family::AF_INET {
                $v4(packet.cast(), out.cast())
            } else {
                $v6(packet.cast(), out.cast())
            })
        }

        $crate::subprogram::step!(@symbol $v4, $crate::family::V4, $body);
        $crate::subprogram::step!(@symbol $v6, $crate::family::V6, $body);
    };
    (@symbol $symbol:ident, $family:ty, $body:ident) => {
        // SAFETY: nothing else in the object has this name.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $symbol(
            packet: *const $crate::flow_packet::FlowPacket<
                <$family as $crate::family::Family>::Flow,
            >,
            out: *mut <$family as $crate::family::Family>::Entry,
        ) -> u32 {
            // SAFETY: null or what the one caller borrowed, which is of the same family; plain numbers.
            // The verifier wants both looked at.
            let (Some(packet), Some(out)) = (unsafe { packet.as_ref() }, unsafe { out.as_mut() })
            else {
                return $crate::flow_packet::Step::MISS.0;
            };
            $body::<$family>(packet, out).0
        }
    };
}
pub(crate) use step;
