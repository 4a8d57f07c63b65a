//! The birth of a flow: claims the tuple its replies will carry, then inserts the forward half.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_loop};
use lb_common::{
    addr::Be16,
    conntrack::{Entry as _, Head, Note, Route, flag, gives_way, state, ticks_since},
    device::Device,
    flow::Flow as _,
    maglev,
    reason::{Event, Reason},
};

use crate::{
    embryonic::forget,
    established::{head_of, snapshot},
    family::Family,
    flow_packet::{FlowPacket, Step},
    removal::give_way,
    stats,
    subprogram::step,
    tables::{self, DEVICE_INDEX, DEVICES, NEXT_HOPS},
};

/// Tuples tried before a flow is refused.
const TRIES: u32 = 24;

/// First port a translated client may get where only the reply tuple must be unique (`dnat`).
const FIRST_CLIENT_PORT: u32 = 1_024;

/// What the tries share. Lives in `SCRATCH`, for the stack has no room left; programs of one CPU do not
/// nest, so there is one at a time. The callback of `bpf_loop` looks it up again.
#[repr(C)]
struct Attempt<F: Family> {
    /// The tuple being tried, as the reply will carry it.
    key: F::Flow,
    /// Head of the closed holder that was silent longest.
    closed_head: u64,
    /// The entry that claims it: the reverse half.
    reply: F::Entry,
    /// The client's address.
    client: F::Address,
    /// First element of the device's SNAT addresses.
    first: u32,
    /// Number of them; 0 for `dnat`.
    count: u32,
    /// Start of the probe sequence.
    seed: u32,
    /// 1 once a tuple is claimed.
    claimed: u32,
    /// Age of the oldest embryonic holder met, plus one; 0 if none.
    oldest_age: u32,
    /// The attempt that met it.
    oldest: u32,
    /// Ticks the closed holder was silent; 0 if none was met.
    closed_age: u32,
    /// The attempt that met it.
    closed: u32,
    /// The client's port.
    client_port: Be16,
    /// Keeps the struct free of padding.
    reserved: u16,
    /// The current tick.
    now: u32,
}

step! {
    /// Claims the reply tuple of a flow [`crate::select::choose`] chose a backend for. On
    /// [`Step::FORWARD`] `out` is the forward half, identity included, not yet in a table.
    claim_reply = claim as claim_v4, claim_v6
}

#[inline(always)]
fn claim<F: Family>(packet: &FlowPacket<F::Flow>, out: &mut F::Entry) -> Step {
    // SAFETY: takes nothing, cannot fail.
    let random = unsafe { bpf_get_prandom_u32() };
    let identity = if random == 0 { 1 } else { random };
    let head = Head::new(identity, state::EMBRYONIC, packet.now);
    let flags = out.flags();
    let Some(attempt) = attempt::<F>() else {
        return Step::refuse(Reason::BrokenTable);
    };
    attempt.key = out.written(packet.protocol()).reversed();
    attempt.reply = F::Entry::new(
        head,
        &packet.flow.reversed(),
        flags | flag::REVERSE,
        out.backend(),
        out.service(),
    );
    attempt.client = packet.flow.source();
    attempt.client_port = packet.flow.source_port();
    attempt.first = 0;
    attempt.count = 0;
    attempt.seed = packet.flow.hash();
    attempt.claimed = 0;
    attempt.oldest_age = 0;
    attempt.oldest = 0;
    attempt.closed_age = 0;
    attempt.closed = 0;
    attempt.closed_head = 0;
    attempt.now = packet.now;
    if flags & flag::FULL_NAT != 0 {
        let Some(device) = device_of(out.route().next_hop() as u32) else {
            return Step::refuse(Reason::NoSnatAddress);
        };
        (attempt.first, attempt.count) = F::snat_slice(device);
        if attempt.count == 0 {
            return Step::refuse(Reason::NoSnatAddress);
        }
    }
    // SAFETY: the callback has the signature `bpf_loop` demands and takes no context.
    unsafe {
        bpf_loop(
            TRIES,
            try_claim::<F> as *mut c_void,
            core::ptr::null_mut(),
            0,
        )
    };
    // Looked up again: the callback wrote to it.
    let Some(attempt) = self::attempt::<F>() else {
        return Step::refuse(Reason::BrokenTable);
    };
    if attempt.claimed == 0 && !take_closed::<F>(attempt) && !take_over::<F>(attempt) {
        return Step::refuse(Reason::SnatExhausted);
    }
    let (route, note) = (out.route(), out.note());
    *out = F::Entry::new(
        head,
        &attempt.key.reversed(),
        flags,
        out.backend(),
        out.service(),
    );
    out.set_route(Route::new(
        identity,
        route.next_hop(),
        route.mtu() as u32,
        route.generation(),
    ));
    out.set_note(Note::new(identity, note.value()));
    Step::FORWARD
}

step! {
    /// Inserts the forward half of a flow whose reply tuple is claimed.
    insert_forward = insert as insert_v4, insert_v6
}

#[inline(always)]
fn insert<F: Family>(packet: &FlowPacket<F::Flow>, out: &mut F::Entry) -> Step {
    let identity = out.head().identity();
    let reply_key = out.written(packet.protocol()).reversed();
    let winner;
    if insert_after::<F>(&packet.flow, out) {
        // As for the reply tuple, insert, then look: the flow may have been made and promoted meanwhile.
        winner = living(F::established(&packet.flow));
        if winner.is_some() {
            forget::<F>(&packet.flow, identity);
        }
    } else {
        // Another CPU made this flow first.
        winner =
            living(F::embryonic(&packet.flow)).or_else(|| living(F::established(&packet.flow)));
        if winner.is_none() {
            forget::<F>(&reply_key, identity);
            return Step::refuse(Reason::InsertFailed);
        }
    }
    let Some(winner) = winner else {
        stats::event(Event::FlowCreated, packet.length);
        stats::flow(out.service(), out.backend(), |traffic| {
            traffic.new_flows += 1
        });
        return Step::FORWARD;
    };
    // SAFETY: looked up just now.
    let is_copied = unsafe { snapshot::<F>(winner, out) };
    // Give our claim back and use the winner's.
    forget::<F>(&reply_key, identity);
    if is_copied {
        Step::FORWARD
    } else {
        Step::refuse(Reason::InsertFailed)
    }
}

/// Inserts a half unless a living one has its key. A dead one keeps the key until the CPU that marked it takes
/// it out: that is the next it does, so a few looks outlast it unless it is interrupted there.
#[inline(always)]
fn insert_after<F: Family>(key: &F::Flow, half: &F::Entry) -> bool {
    for _ in 0..8 {
        if F::insert_embryonic(key, half).is_ok() {
            return true;
        }
        if living(F::embryonic(key)).is_some() {
            break;
        }
    }
    false
}

/// An entry that was looked up just now, unless it is about to leave.
#[inline(always)]
fn living<E>(entry: Option<*mut E>) -> Option<*mut E> {
    entry.filter(|entry| head_of(*entry).state() != state::DEAD)
}

#[inline(always)]
fn attempt<F: Family>() -> Option<&'static mut Attempt<F>> {
    // SAFETY: plain numbers; each user looks it up anew after the other may have written.
    unsafe { tables::scratch::<Attempt<F>>(tables::STEP) }
}

#[inline(always)]
fn device_of(next_hop: u32) -> Option<&'static Device> {
    let hop = NEXT_HOPS.get(next_hop)?;
    // SAFETY: copied at once.
    let index = unsafe { DEVICE_INDEX.get(hop.ifindex) }.copied()?;
    DEVICES.get(index)
}

/// Puts the `number`-th tuple of the probe sequence into `attempt.key`. Double hashing: each try takes
/// a port, and an address, unrelated to the last; the client's own port comes first.
#[inline(always)]
fn place<F: Family>(attempt: &mut Attempt<F>, number: u32) -> bool {
    let mixed = (attempt.seed ^ number.wrapping_mul(0x9e37_79b1)).wrapping_mul(0x85eb_ca6b);
    let mixed = mixed ^ (mixed >> 15);
    let (address, first_port, ports) = if attempt.count == 0 {
        (
            attempt.client,
            FIRST_CLIENT_PORT,
            0x1_0000 - FIRST_CLIENT_PORT,
        )
    } else {
        let offset = ((mixed & 0xffff) * (attempt.count & 0xffff)) >> 16;
        match F::snat(attempt.first + offset) {
            Some(snat) => snat,
            None => return false,
        }
    };
    let own = attempt.client_port.get() as u32;
    let own_fits = attempt.count == 0 || own.wrapping_sub(first_port) < ports;
    let port = if number == 0 && own_fits {
        attempt.client_port
    } else {
        Be16::new((first_port + maglev::slot(mixed.rotate_left(16), ports)) as u16)
    };
    attempt.key = F::Flow::new(
        attempt.key.source(),
        attempt.key.source_port(),
        address,
        port,
        attempt.key.protocol(),
    );
    true
}

/// One try. Returns 1 to end the loop.
///
/// The order matters: insert into `EMBRYONIC` with NOEXIST, *then* look in `FLOWS`, so that of two
/// flows racing for a tuple one always sees the other.
extern "C" fn try_claim<F: Family>(number: u32, _context: *mut c_void) -> i64 {
    let Some(attempt) = attempt::<F>() else {
        return 1;
    };
    if !place::<F>(attempt, number) {
        return 1;
    }
    if F::insert_embryonic(&attempt.key, &attempt.reply).is_ok() {
        let Some(holder) = F::established(&attempt.key) else {
            attempt.claimed = 1;
            return 1;
        };
        let holder = head_of(holder);
        forget::<F>(&attempt.key, attempt.reply.head().identity());
        let age = ticks_since(attempt.now, holder.stamp());
        if gives_way(holder, attempt.now) && age > attempt.closed_age {
            attempt.closed_age = age;
            attempt.closed = number;
            attempt.closed_head = holder.0;
        }
    } else if let Some(holder) = living(F::embryonic(&attempt.key)) {
        let holder = head_of(holder);
        let age = ticks_since(attempt.now, holder.stamp()) + 1;
        if age > attempt.oldest_age {
            attempt.oldest_age = age;
            attempt.oldest = number;
        }
    }
    0
}

/// Every tuple tried is held: takes that of the closed flow that was silent longest.
#[inline(always)]
fn take_closed<F: Family>(attempt: &mut Attempt<F>) -> bool {
    if attempt.closed_age == 0 {
        return false;
    }
    let closed = attempt.closed;
    place::<F>(attempt, closed)
        && give_way::<F>(&attempt.key, Head(attempt.closed_head), attempt.now)
        && take::<F>(attempt)
}

/// Every tuple tried is held, and no closed flow gives way: takes the oldest embryonic holder's. Its forward
/// half then finds a foreign identity and is dead.
#[inline(always)]
fn take_over<F: Family>(attempt: &mut Attempt<F>) -> bool {
    if attempt.oldest_age == 0 {
        return false;
    }
    let oldest = attempt.oldest;
    if !place::<F>(attempt, oldest) || F::established(&attempt.key).is_some() {
        return false;
    }
    if let Some(holder) = F::embryonic(&attempt.key) {
        forget::<F>(&attempt.key, head_of(holder).identity());
    }
    let taken = take::<F>(attempt);
    if taken {
        stats::event(Event::SnatTakenOver, 0);
    }
    taken
}

/// Claims a tuple whose holder was made to leave. Insert, then look, as in [`try_claim`]: the holder may have
/// been promoted meanwhile, and the tuple is its own.
#[inline(always)]
fn take<F: Family>(attempt: &mut Attempt<F>) -> bool {
    if F::insert_embryonic(&attempt.key, &attempt.reply).is_err() {
        return false;
    }
    let taken = F::established(&attempt.key).is_none();
    if !taken {
        forget::<F>(&attempt.key, attempt.reply.head().identity());
    }
    taken
}
