//! The programs of a lab by their descriptors: they need nothing else of it, so that any thread can run
//! them.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::Ebpf;
use lb_common::names;
use lb_userspace::kernel::{TestRun, test_run};

use super::{Outcome, Verdict};
use crate::network::Port;

/// Loaded programs by name.
#[derive(Debug, Default)]
pub struct Programs(BTreeMap<String, OwnedFd>);

impl Programs {
    pub(super) fn of(ebpf: &Ebpf) -> Self {
        let descriptor = |(name, program): (&str, &aya::programs::Program)| {
            let fd = program.fd().ok()?.as_fd().try_clone_to_owned();
            Some((name.to_owned(), fd.expect("a descriptor")))
        };
        Self(ebpf.programs().filter_map(descriptor).collect())
    }

    /// Runs `lb_xdp` on a frame that came in by `port`.
    pub fn xdp(&self, frame: &[u8], port: Port) -> Outcome {
        let length = u32::try_from(frame.len()).expect("a short frame");
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = words(&[0, length, 0, port.ifindex, 0, 0]);
        let (verdict, frame) = self.run(names::LB_XDP, frame, &context);
        let verdict = match verdict {
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 | 4 => Verdict::Send,
            other => Verdict::Other(other),
        };
        Outcome { verdict, frame }
    }

    /// Runs `lb_ingress` on a frame that came in by `port`.
    pub fn ingress(&self, frame: &[u8], port: Port) -> Outcome {
        self.classifier(names::LB_INGRESS, frame, port, 0)
    }

    /// Runs a classifier; `gso_size` is the payload of a segment, 0 if the packet is none of GSO.
    pub(super) fn classifier(
        &self,
        program: &str,
        frame: &[u8],
        port: Port,
        gso_size: u32,
    ) -> Outcome {
        let length = u32::try_from(frame.len()).expect("a frame's length");
        // struct __sk_buff, by words.
        let mut fields = [0_u32; 48];
        for (at, field) in fields.iter_mut().enumerate() {
            *field = match at {
                // ingress_ifindex and ifindex.
                9 | 10 => port.ifindex,
                // wire_len, gso_segs, gso_size.
                40 if gso_size != 0 => length,
                41 if gso_size != 0 => length.div_ceil(gso_size),
                44 => gso_size,
                _ => 0,
            };
        }
        let (verdict, frame) = self.run(program, frame, &words(&fields));
        let verdict = match verdict {
            0 | u32::MAX => Verdict::Pass,
            2 => Verdict::Drop,
            7 => Verdict::Send,
            other => Verdict::Other(other),
        };
        Outcome { verdict, frame }
    }

    /// Runs the expiry program on its input, header included. Returns how many halves it changed.
    pub fn expire(&self, input: &[u8]) -> u32 {
        self.run(names::LB_EXPIRE, input, &[]).0
    }

    pub(super) fn run(&self, program: &str, frame: &[u8], context: &[u8]) -> (u32, Vec<u8>) {
        let input = TestRun {
            data: frame,
            context,
            headroom: 256,
            ..TestRun::default()
        };
        let descriptor = self.0.get(program);
        let descriptor = descriptor.unwrap_or_else(|| panic!("no program {program}"));
        let output = test_run(descriptor.as_fd(), &input)
            .unwrap_or_else(|e| panic!("test run of {program}, {} bytes: {e}", frame.len()));
        (output.retval, output.data)
    }
}

fn words(fields: &[u32]) -> Vec<u8> {
    fields
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect()
}
