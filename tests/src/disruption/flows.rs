//! The watched flows: one thread sends a message on each of them every [`PAUSE`], on a schedule that no answer
//! delays, and judges every byte that comes back.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use self::flow::Flow;
use super::{
    go_first,
    message::address,
    observe::Loss,
    stall::{self, Interval},
};
use crate::netns::{Namespace, now, poll_until};

mod flow;

/// Between two messages of a flow: more than ten a second, also when the machine is late at times.
pub const PAUSE: Duration = Duration::from_millis(90);

/// Messages sent before the next look at what came.
const AT_ONCE: usize = 32;

/// How long the flows may take to begin.
const PATIENCE: Duration = Duration::from_secs(30);

/// Established flows under watch.
#[derive(Debug)]
pub struct Flows {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<(Vec<Flow>, Duration)>>,
    /// The watched ones by their numbers.
    tuples: BTreeMap<u32, Tuple>,
    start: Instant,
}

/// A flow's ends, as its client sees them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tuple {
    /// The client.
    pub client: SocketAddr,
    /// The frontend.
    pub server: SocketAddr,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// On watched flows.
    answers: AtomicU64,
    /// When the last of them came, in milliseconds from the start of the clock.
    last: AtomicU64,
    broken: AtomicU64,
    /// Why the first flow broke, and when.
    first_loss: Mutex<Option<String>>,
    /// Who answered a flow first.
    backends: Mutex<BTreeMap<u32, IpAddr>>,
}

/// What became of the flows.
#[derive(Debug)]
pub struct Outcome {
    /// The watched ones, in the order they were asked for.
    pub flows: Vec<Seen>,
    /// When the machine stood still, as the control flows tell.
    pub machine: Vec<Interval>,
    /// The longest silence of any control flow.
    pub control_longest: Duration,
    /// How long the flows were watched.
    pub watched: Duration,
}

/// What became of one flow.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its ends.
    pub tuple: Tuple,
    /// Whom it is with.
    pub backend: Option<IpAddr>,
    /// Messages in either direction.
    pub messages: u64,
    /// The longest silence without what the machine stood still.
    pub longest: Duration,
    /// The longest silence.
    pub silence: Duration,
    /// Why it is lost, if it is.
    pub loss: Option<Loss>,
    /// The silence for which it is lost.
    pub stall: Option<Interval>,
}

impl Flows {
    /// Opens a flow from `client` to each of `servers`, and to each of `controls` without the load balancer;
    /// returns when every one was answered.
    pub fn start(client: &Namespace, servers: &[SocketAddr], controls: &[SocketAddr]) -> Self {
        client.inside(|| Self::start_here(servers, controls))
    }

    /// The same, from the network of the calling thread.
    pub fn start_here(servers: &[SocketAddr], controls: &[SocketAddr]) -> Self {
        let start = now();
        let all = interleaved(servers, controls);
        let open = |(number, (server, control))| Flow::open(number, server, control, start);
        let flows: Vec<Flow> = (0..).zip(all).map(open).collect();
        let mine = (0..).zip(&flows).filter(|(_, flow)| !flow.control);
        let tuples = mine.map(|(number, flow)| (number, flow.tuple)).collect();
        let number = servers.len() as u64;
        let shared = Arc::new(Shared::default());
        let state = Arc::clone(&shared);
        let thread = std::thread::spawn(move || Loop::new(&state, flows, start).run());
        let this = Self {
            shared,
            thread: Some(thread),
            tuples,
            start,
        };
        poll_until("every flow to be answered often", PATIENCE, || {
            (this.answers() >= 5 * number).then_some(())
        });
        this
    }

    /// The watched flows, and whom each is with.
    pub fn backends(&self) -> Vec<(Tuple, IpAddr)> {
        let backends = self.shared.backends();
        let all = self.tuples.iter();
        all.filter_map(|(number, tuple)| Some((*tuple, *backends.get(number)?)))
            .collect()
    }

    /// Messages received by the client, without those on control flows.
    pub fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// What is known of the flows now, for the reader of a test that fails.
    pub fn state(&self) -> String {
        let last = Duration::from_millis(self.shared.last.load(Ordering::Relaxed));
        let first = self.shared.first_loss();
        format!(
            "{} answers, the last at {:.1} s of {:.1} s; {} flows broken, the first: {}",
            self.answers(),
            last.as_secs_f64(),
            self.start.elapsed().as_secs_f64(),
            self.broken(),
            first.as_deref().unwrap_or("none")
        )
    }

    /// Flows that broke until now; stalls are judged at the end.
    pub fn broken(&self) -> u64 {
        self.shared.broken.load(Ordering::Relaxed)
    }

    /// Since when [`Interval`]s are counted.
    pub fn start_of_clock(&self) -> Instant {
        self.start
    }

    /// Ends the watch and judges.
    pub fn finish(mut self) -> Outcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("finished once");
        let (flows, watched) = thread.join().expect("the flows' thread does not panic");
        judge(flows, watched)
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// The servers with the controls between them, evenly: no turn of the schedule is theirs alone.
fn interleaved(servers: &[SocketAddr], controls: &[SocketAddr]) -> Vec<(SocketAddr, bool)> {
    let share = servers.len().div_ceil(controls.len().max(1)).max(1);
    let mut controls = controls.iter();
    let mut all = Vec::new();
    for part in servers.chunks(share) {
        all.extend(part.iter().map(|server| (*server, false)));
        all.extend(controls.next().map(|server| (*server, true)));
    }
    all.extend(controls.map(|server| (*server, true)));
    all
}

fn judge(flows: Vec<Flow>, watched: Duration) -> Outcome {
    let (controls, flows): (Vec<_>, Vec<_>) = flows.into_iter().partition(|flow| flow.control);
    for control in &controls {
        if let Some(loss) = &control.loss {
            panic!("a control flow was lost, the network itself is broken: {loss}");
        }
    }
    let late: Vec<_> = controls
        .iter()
        .map(|control| stall::beyond(&control.observed.silences, PAUSE))
        .collect();
    let machine = stall::of_machine(&late);
    let longest = controls.iter().map(|control| control.observed.longest);
    Outcome {
        control_longest: longest.max().unwrap_or_default(),
        flows: flows.iter().map(|flow| flow.judge(&machine)).collect(),
        machine,
        watched,
    }
}

impl Shared {
    fn first_loss(&self) -> MutexGuard<'_, Option<String>> {
        let guard = self.first_loss.lock();
        guard.unwrap_or_else(PoisonError::into_inner)
    }

    fn backends(&self) -> MutexGuard<'_, BTreeMap<u32, IpAddr>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Loop<'s> {
    shared: &'s Shared,
    epoll: Epoll,
    flows: Vec<Flow>,
    start: Instant,
}

impl<'s> Loop<'s> {
    fn new(shared: &'s Shared, flows: Vec<Flow>, start: Instant) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
        for (number, flow) in (0..).zip(&flows) {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
            epoll.add(&flow.stream, event).expect("epoll");
        }
        Self {
            shared,
            epoll,
            flows,
            start,
        }
    }

    /// The flows at the end, and how long they were watched.
    fn run(mut self) -> (Vec<Flow>, Duration) {
        go_first();
        let begin = self.start.elapsed();
        for flow in &mut self.flows {
            flow.observed.last = begin;
        }
        let mut sent = 0;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let due = self.due(self.start.elapsed().saturating_sub(begin));
            // After a halt of the machine not everything at once.
            sent = sent.max(due.saturating_sub(2 * self.flows.len()));
            let now = due.min(sent + AT_ONCE);
            for turn in sent..now {
                self.send(turn % self.flows.len());
            }
            sent = now;
            self.receive();
        }
        let now = self.start.elapsed();
        for flow in &mut self.flows {
            flow.observed.silent_until(now);
        }
        (self.flows, now.saturating_sub(begin))
    }

    /// Messages to be sent by then: the flows take turns, evenly.
    fn due(&self, since: Duration) -> usize {
        let turns = since.as_micros() * self.flows.len() as u128 / PAUSE.as_micros();
        usize::try_from(turns).expect("the watch ends within the age of the world")
    }

    fn send(&mut self, number: usize) {
        if let Some(flow) = self.flows.get_mut(number) {
            flow.send(u32::try_from(number).expect("few flows"));
        }
    }

    fn receive(&mut self) {
        let mut events = [EpollEvent::empty(); 128];
        let ready = match self.epoll.wait(&mut events, EpollTimeout::from(1_u8)) {
            Ok(ready) => ready,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => panic!("epoll: {error}"),
        };
        for event in events.iter().take(ready) {
            let number = usize::try_from(event.data()).expect("few flows");
            let Some(flow) = self.flows.get_mut(number) else {
                continue;
            };
            let before = flow.observed.answers;
            flow.receive(self.start.elapsed());
            let answers = flow.observed.answers - before;
            if let (0, Some(server)) = (before, flow.observed.server) {
                let number = u32::try_from(number).expect("few flows");
                self.shared.backends().insert(number, address(server));
            }
            let time = self.start.elapsed();
            if answers > 0 && !flow.control {
                let last = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                self.shared.last.store(last, Ordering::Relaxed);
                self.shared.answers.fetch_add(answers, Ordering::Relaxed);
            }
            if let Some(loss) = &flow.loss {
                self.shared.broken.fetch_add(1, Ordering::Relaxed);
                self.shared.first_loss().get_or_insert_with(|| {
                    format!(
                        "{} at {:.1} s: {loss}",
                        flow.tuple.server,
                        time.as_secs_f64()
                    )
                });
                self.epoll.delete(&flow.stream).expect("epoll");
            }
        }
    }
}

impl Outcome {
    /// Lost flows, told apart for the reader.
    pub fn lost(&self) -> Vec<String> {
        let lost = self.flows.iter().filter_map(|flow| {
            let loss = flow.loss.as_ref()?;
            let Tuple { client, server } = flow.tuple;
            let backend = flow.backend.map_or("nobody".into(), |it| it.to_string());
            Some(format!("{client} to {server}, with {backend}: {loss}"))
        });
        lost.collect()
    }

    /// When flows stalled, those that began together as one.
    pub fn stalls(&self) -> Vec<Interval> {
        let mut all: Vec<_> = self.flows.iter().filter_map(|flow| flow.stall).collect();
        all.sort();
        all.dedup_by(|next, first| next.from < first.to);
        all
    }

    /// The longest stall of any watched flow.
    pub fn longest(&self) -> Duration {
        let all = self.flows.iter().map(|flow| flow.longest);
        all.max().unwrap_or_default()
    }

    /// Messages per second that the slowest flow exchanged, in either direction, while the machine did not stand
    /// still.
    pub fn slowest(&self) -> f64 {
        let least = self.flows.iter().map(|flow| flow.messages).min();
        let least = u32::try_from(least.unwrap_or_default()).unwrap_or(u32::MAX);
        let still: Duration = self.machine.iter().map(|it| it.length()).sum();
        f64::from(least) / self.watched.saturating_sub(still).as_secs_f64()
    }
}
