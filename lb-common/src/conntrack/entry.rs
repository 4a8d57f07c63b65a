//! The values of the flow tables.

use core::mem::offset_of;

use super::{Head, Note, Pending, Route};
use crate::{
    addr::{Addr4, Addr6, Be16},
    flow::{Flow, Flow4, Flow6},
    wire,
};

/// Bits of [`Entry::flags`]: the low ones of the word they share with [`Pending`].
pub mod flag {
    /// Backend to client.
    pub const REVERSE: u32 = 1;
    /// The client's address is replaced too.
    pub const FULL_NAT: u32 = 1 << 1;
    /// The backend is the node itself: forward packets go to the stack, replies are met at egress.
    pub const HOST: u32 = 1 << 2;
    /// The backend is a pod of this node.
    pub const LOCAL: u32 = 1 << 3;
    /// A flow of the node's own stack, known there before its frontend was ours: every packet of it
    /// passes, and it never has a route.
    pub const PASS: u32 = 1 << 4;
    /// All of them.
    pub const ALL: u32 = REVERSE | FULL_NAT | HOST | LOCAL | PASS;
}

/// What the two entry types have in common. [`Head`] is the first word of either.
pub trait Entry: Copy + Default {
    /// The key type of the family.
    type Flow: Flow;
    /// Where [`Route`] stands, in words of eight bytes.
    const ROUTE_WORD: usize;
    /// Where [`Note`] stands, in words of eight bytes.
    const NOTE_WORD: usize;
    /// Where the flags and [`Pending`] stand, in words of four bytes.
    const PENDING_WORD: usize;

    /// An entry that rewrites packets to `written`.
    fn new(head: Head, written: &Self::Flow, flags: u32, backend: u32, service: u32) -> Self;
    /// The tuple a packet has after the rewrite. The other half's key is its reverse.
    fn written(&self, protocol: u8) -> Self::Flow;
    /// First word.
    fn head(&self) -> Head;
    /// Second word.
    fn route(&self) -> Route;
    /// Third word.
    fn note(&self) -> Note;
    /// Replaces the first word of a copy.
    fn set_head(&mut self, head: Head);
    /// Replaces the second word of a copy.
    fn set_route(&mut self, route: Route);
    /// Replaces the third word of a copy.
    fn set_note(&mut self, note: Note);
    /// Bits of [`flag`].
    fn flags(&self) -> u32;
    /// Replaces the flags of a copy, which has nothing pending any more.
    fn set_flags(&mut self, flags: u32);
    /// Traffic that is not counted elsewhere yet.
    fn pending(&self) -> Pending;
    /// Backend id.
    fn backend(&self) -> u32;
    /// Service-port id.
    fn service(&self) -> u32;
}

macro_rules! entry {
    ($(#[$doc:meta])* $name:ident, $flow:ident, $address:ty) => {
        #[cfg(not(feature = "second-layout"))]
        wire! {
            $(#[$doc])*
            pub struct $name {
                /// [`Head`].
                pub head: u64,
                /// [`Route`].
                pub route: u64,
                /// [`Note`].
                pub note: u64,
                /// Source address to write.
                pub source: $address,
                /// Destination address to write.
                pub destination: $address,
                /// Source port to write.
                pub source_port: Be16,
                /// Destination port to write.
                pub destination_port: Be16,
                /// Bits of [`flag`], and [`Pending`].
                pub flags: u32,
                /// Backend id.
                pub backend: u32,
                /// Service-port id.
                pub service: u32,
            }
        }

        #[cfg(feature = "second-layout")]
        wire! {
            $(#[$doc])*
            pub struct $name {
                /// [`Head`].
                pub head: u64,
                /// [`Note`].
                pub note: u64,
                /// [`Route`].
                pub route: u64,
                /// Always zero.
                pub reserved: u64,
                /// Service-port id.
                pub service: u32,
                /// Backend id.
                pub backend: u32,
                /// Bits of [`flag`], and [`Pending`].
                pub flags: u32,
                /// Destination port to write.
                pub destination_port: Be16,
                /// Source port to write.
                pub source_port: Be16,
                /// Destination address to write.
                pub destination: $address,
                /// Source address to write.
                pub source: $address,
            }
        }

        const _: () = assert!(offset_of!($name, head) == 0);
        const _: () = assert!(offset_of!($name, flags).is_multiple_of(size_of::<u32>()));

        impl Entry for $name {
            type Flow = $flow;

            const ROUTE_WORD: usize = offset_of!($name, route) / size_of::<u64>();
            const NOTE_WORD: usize = offset_of!($name, note) / size_of::<u64>();
            const PENDING_WORD: usize = offset_of!($name, flags) / size_of::<u32>();

            #[inline(always)]
            fn new(head: Head, written: &$flow, flags: u32, backend: u32, service: u32) -> Self {
                Self {
                    head: head.0,
                    route: Route::new(head.identity(), 0, 0, 0).0,
                    note: Note::new(head.identity(), 0).0,
                    source: written.source,
                    destination: written.destination,
                    source_port: written.source_port,
                    destination_port: written.destination_port,
                    flags,
                    backend,
                    service,
                    #[cfg(feature = "second-layout")]
                    reserved: 0,
                }
            }

            #[inline(always)]
            fn written(&self, protocol: u8) -> $flow {
                $flow {
                    source: self.source,
                    destination: self.destination,
                    source_port: self.source_port,
                    destination_port: self.destination_port,
                    protocol: protocol as u32,
                }
            }

            #[inline(always)]
            fn head(&self) -> Head {
                Head(self.head)
            }

            #[inline(always)]
            fn route(&self) -> Route {
                Route(self.route)
            }

            #[inline(always)]
            fn note(&self) -> Note {
                Note(self.note)
            }

            #[inline(always)]
            fn set_head(&mut self, head: Head) {
                self.head = head.0;
            }

            #[inline(always)]
            fn set_route(&mut self, route: Route) {
                self.route = route.0;
            }

            #[inline(always)]
            fn set_note(&mut self, note: Note) {
                self.note = note.0;
            }

            #[inline(always)]
            fn flags(&self) -> u32 {
                self.flags & Pending::FLAGS
            }

            #[inline(always)]
            fn set_flags(&mut self, flags: u32) {
                self.flags = flags;
            }

            #[inline(always)]
            fn pending(&self) -> Pending {
                Pending(self.flags)
            }

            #[inline(always)]
            fn backend(&self) -> u32 {
                self.backend
            }

            #[inline(always)]
            fn service(&self) -> u32 {
                self.service
            }
        }
    };
}

entry! {
    /// One direction of an IPv4 flow. 64 bytes of hash element, key included: one cache line.
    Entry4, Flow4, Addr4
}
entry! {
    /// One direction of an IPv6 flow.
    Entry6, Flow6, Addr6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(not(feature = "second-layout"))]
    fn entry_sizes_decide_the_memory_per_flow() {
        // The kernel's element is 48 bytes of header, the key and the value.
        assert_eq!(48 + size_of::<Flow4>() + size_of::<Entry4>(), 112);
        assert_eq!(48 + size_of::<Flow6>() + size_of::<Entry6>(), 160);
    }
}
