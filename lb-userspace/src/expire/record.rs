//! Records of the input of `lb_expire`.

use lb_common::{
    conntrack::{Head, Idle4, Idle6},
    flow::{Flow4, Flow6},
};

/// A record of `lb_expire`'s input.
pub(super) trait Record<F>: Sized {
    const FAMILY: u8;
    const MOST: usize;
    fn new(flow: F, head: Head) -> Self;
    fn put(&self, data: &mut Vec<u8>);
}

impl Record<Flow4> for Idle4 {
    const FAMILY: u8 = 4;
    const MOST: usize = 64;

    fn new(flow: Flow4, head: Head) -> Self {
        Self { flow, head: head.0 }
    }

    fn put(&self, data: &mut Vec<u8>) {
        let Flow4 {
            source,
            destination,
            source_port,
            destination_port,
            protocol,
        } = self.flow;
        data.extend(source.0.to_ne_bytes());
        data.extend(destination.0.to_ne_bytes());
        data.extend(source_port.0.to_ne_bytes());
        data.extend(destination_port.0.to_ne_bytes());
        data.extend(protocol.to_ne_bytes());
        data.extend(self.head.to_ne_bytes());
    }
}

impl Record<Flow6> for Idle6 {
    const FAMILY: u8 = 6;
    const MOST: usize = 48;

    fn new(flow: Flow6, head: Head) -> Self {
        Self { flow, head: head.0 }
    }

    fn put(&self, data: &mut Vec<u8>) {
        let Flow6 {
            source,
            destination,
            source_port,
            destination_port,
            protocol,
        } = self.flow;
        for word in source.0.into_iter().chain(destination.0) {
            data.extend(word.to_ne_bytes());
        }
        data.extend(source_port.0.to_ne_bytes());
        data.extend(destination_port.0.to_ne_bytes());
        data.extend(protocol.to_ne_bytes());
        data.extend(self.head.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use lb_common::conntrack::state::ESTABLISHED;

    use super::*;

    #[test]
    fn records_have_the_layout_the_program_reads() {
        let mut data = Vec::new();
        Idle4::new(Flow4::default(), Head::new(1, ESTABLISHED, 2)).put(&mut data);
        assert_eq!(data.len(), size_of::<Idle4>());
        assert!(data.ends_with(&Head::new(1, ESTABLISHED, 2).0.to_ne_bytes()));
        let mut data = Vec::new();
        Idle6::new(Flow6::default(), Head::new(1, ESTABLISHED, 2)).put(&mut data);
        assert_eq!(data.len(), size_of::<Idle6>());
    }
}
