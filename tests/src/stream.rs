//! Packets of established flows, as fast as the processors can: `lb_stream` run with live frames, which leave
//! by a device, and the programs that receive them.
//!
//! Every frame is counted where it is made and where it ends, with what it must look like there: a rate is
//! that of frames that came through.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    sync::Barrier,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, PerCpuArray, PerCpuValues, xdp::DevMap},
    programs::{Xdp, xdp::XdpMode},
};
use lb_common::{
    names,
    stream::{Arrived, Expected, Stream, stream_flag},
};
use lb_userspace::kernel::{LIVE_FRAMES, TestRun, possible_cpus, test_run};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::netns::{Namespace, now};

pub mod flows;
mod frames;
pub mod line;
mod processor;

pub use frames::Frames;
pub use processor::Ticks;

/// The generator and its maps.
const LB_STREAM: &str = "lb_stream";
const STREAM: &str = "STREAM";
const EXPECTED: &str = "EXPECTED";
const ARRIVED: &str = "ARRIVED";
const STREAM_DEVICES: &str = "STREAM_DEVICES";

/// Frames the kernel handles at a time: what a NAPI poll takes.
const BATCH: u32 = 64;
/// Entries of the data path's own maps, which come with the object and are not used.
const UNUSED: u32 = 4_096;
/// When nothing arrived for so long, nothing will.
const QUIET: Duration = Duration::from_millis(20);

/// What a program at a device does with the frames that arrive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Receiver {
    /// Counts and drops them.
    Sink,
    /// Sends them back by the device.
    Reflector,
    /// Redirects them to another device, by its number.
    Redirector,
    /// The same by a map of devices.
    MapRedirector,
}

impl Receiver {
    const ALL: [Self; 4] = [
        Self::Sink,
        Self::Reflector,
        Self::Redirector,
        Self::MapRedirector,
    ];

    const fn program(self) -> &'static str {
        match self {
            Self::Sink => "lb_stream_sink",
            Self::Reflector => "lb_stream_reflect",
            Self::Redirector => "lb_stream_redirect",
            Self::MapRedirector => "lb_stream_devmap",
        }
    }
}

/// A device of a namespace.
#[derive(Clone, Copy, Debug)]
pub struct Device<'n> {
    /// Where it is.
    pub namespace: &'n Namespace,
    /// Its name there.
    pub name: &'n str,
}

/// What to send, and whence.
#[derive(Clone, Copy, Debug)]
pub struct Call<'n> {
    /// The frames.
    pub frames: Frames,
    /// How many from each processor.
    pub count: u32,
    /// By which device.
    pub from: Device<'n>,
    /// Where redirectors send them.
    pub onward: Option<Device<'n>>,
    /// The processors that send, all at once. The flows are divided among them, as a device with several
    /// queues does it.
    pub processors: &'n [usize],
    /// Whether checksums are looked at where the frames arrive.
    pub verify: bool,
}

/// What one processor did in a call.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    /// How long its call took.
    pub wall: Duration,
    /// Time the thread itself had of it, softirqs within it included.
    pub own: Duration,
    /// What the processor did meanwhile.
    pub ticks: Ticks,
}

/// What became of a call.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Frames redirected out of the device.
    pub sent: u64,
    /// Frames that arrived.
    pub arrived: Arrived,
    /// Each processor.
    pub lanes: Vec<Lane>,
}

/// The programs, loaded. Those that were attached stay so until this is dropped.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
}

impl Programs {
    /// Loads them from the object compiled with the feature `bench`.
    ///
    /// # Errors
    ///
    /// The object cannot be read or lacks a program, or the kernel refuses one.
    pub fn load(object: &Path) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        for (name, _) in names::MAPS {
            loader.map_max_entries(name, UNUSED);
        }
        let ebpf = loader
            .load_file(object)
            .with_context(|| format!("load {}", object.display()))?;
        let mut this = Self { ebpf };
        for name in Receiver::ALL
            .map(Receiver::program)
            .iter()
            .chain([&LB_STREAM])
        {
            let program = this.program_mut(name)?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        Ok(this)
    }

    fn program_mut(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self.ebpf.program_mut(name);
        let program = program.with_context(|| format!("the object has no program {name}"))?;
        Ok(program.try_into()?)
    }

    fn map_mut(&mut self, name: &str) -> Result<&mut Map> {
        let map = self.ebpf.map_mut(name);
        map.with_context(|| format!("the object has no map {name}"))
    }

    /// Attaches a program to a device.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn attach(&mut self, receiver: Receiver, to: Device<'_>, mode: XdpMode) -> Result<()> {
        let name = receiver.program();
        let program = self.program_mut(name)?;
        let attached = to.namespace.inside(|| program.attach(to.name, mode));
        attached.with_context(|| format!("attach {name} to {}", to.name))?;
        Ok(())
    }

    /// Sends, and waits until nothing arrives any more.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn run(&mut self, call: &Call<'_>) -> Result<Outcome> {
        self.describe(call)?;
        let program = self.ebpf.program(LB_STREAM).context("it was loaded")?;
        let program: &Xdp = program.try_into()?;
        let program = program.fd()?.as_fd();
        let lanes = call.from.namespace.inside(|| lanes(program, call))?;
        let sent = self.sent()?;
        Ok(Outcome {
            sent,
            arrived: self.wait_arrived(sent)?,
            lanes,
        })
    }

    /// Tells the programs what the call is about, and begins to count.
    fn describe(&mut self, call: &Call<'_>) -> Result<()> {
        let mut expected = call.frames.expected();
        if call.verify {
            expected.flags |= stream_flag::VERIFY;
        }
        if let Some(onward) = call.onward {
            expected.ifindex = ifindex(onward)?;
            let mut devices = DevMap::try_from(self.map_mut(STREAM_DEVICES)?)?;
            // The map takes a device of the calling thread's namespace.
            let set = || devices.set(0, expected.ifindex, None, 0);
            onward.namespace.inside(set)?;
        }
        let mut map: Array<_, Expected> = self.map_mut(EXPECTED)?.try_into()?;
        map.set(0, expected, 0)?;

        let processors = possible_cpus()?;
        let zeroes = PerCpuValues::try_from(vec![Arrived::default(); processors])?;
        let mut map: PerCpuArray<_, Arrived> = self.map_mut(ARRIVED)?.try_into()?;
        map.set(0, zeroes, 0)?;

        let stream = call.frames.stream(ifindex(call.from)?);
        let lanes = u32::try_from(call.processors.len())?;
        let mut streams = vec![Stream::default(); processors];
        for (lane, processor) in (0..).zip(call.processors) {
            let element = streams.get_mut(*processor);
            *element.context("there is no such processor")? = Stream {
                first: lane,
                step: lanes,
                mask: (call.frames.flows / lanes).max(1) - 1,
                ..stream
            };
        }
        let mut map: PerCpuArray<_, Stream> = self.map_mut(STREAM)?.try_into()?;
        map.set(0, PerCpuValues::try_from(streams)?, 0)?;
        Ok(())
    }

    fn sent(&self) -> Result<u64> {
        let map = self.ebpf.map(STREAM).context("it was loaded")?;
        let map: PerCpuArray<_, Stream> = map.try_into()?;
        let streams = map.get(&0, 0)?;
        Ok(streams.iter().map(|stream| u64::from(stream.frames)).sum())
    }

    fn arrived(&self) -> Result<Arrived> {
        let map = self.ebpf.map(ARRIVED).context("it was loaded")?;
        let map: PerCpuArray<_, Arrived> = map.try_into()?;
        let each = map.get(&0, 0)?;
        Ok(each.iter().fold(Arrived::default(), |sum, one| Arrived {
            frames: sum.frames + one.frames,
            wrong: sum.wrong + one.wrong,
        }))
    }

    /// Frames may lie in a queue when the call ends.
    fn wait_arrived(&self, sent: u64) -> Result<Arrived> {
        let mut before = self.arrived()?;
        while before.frames + before.wrong < sent {
            std::thread::sleep(QUIET);
            let after = self.arrived()?;
            if after == before {
                break;
            }
            before = after;
        }
        Ok(before)
    }
}

fn ifindex(device: Device<'_>) -> Result<u32> {
    let index = || nix::net::if_::if_nametoindex(device.name);
    let index = device.namespace.inside(index);
    index.with_context(|| format!("find the device {}", device.name))
}

/// Runs the generator on each of the processors, in the namespace of the calling thread.
fn lanes(program: BorrowedFd<'_>, call: &Call<'_>) -> Result<Vec<Lane>> {
    let ready = Barrier::new(call.processors.len());
    std::thread::scope(|scope| {
        let spawn = |processor: &usize| {
            let (processor, ready) = (*processor, &ready);
            scope.spawn(move || {
                let stays = stay_on(processor);
                ready.wait();
                stays.and_then(|()| lane(program, call, processor))
            })
        };
        let threads: Vec<_> = call.processors.iter().map(spawn).collect();
        let each = threads.into_iter().map(|thread| {
            let joined = thread.join();
            joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        each.collect()
    })
}

fn lane(program: BorrowedFd<'_>, call: &Call<'_>, processor: usize) -> Result<Lane> {
    let input = TestRun {
        data: call.frames.blank(),
        repeat: call.count,
        flags: LIVE_FRAMES,
        batch_size: BATCH,
        ..TestRun::default()
    };
    let (ticks, own, begin) = (Ticks::of(processor)?, processor::own_time()?, now());
    test_run(program, &input).context("send live frames")?;
    Ok(Lane {
        wall: begin.elapsed(),
        own: processor::own_time()?.saturating_sub(own),
        ticks: Ticks::of(processor)?.since(ticks),
    })
}

/// Keeps the calling thread on one processor.
fn stay_on(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("stay on processor {processor}"))
}
