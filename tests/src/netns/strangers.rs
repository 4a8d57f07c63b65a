//! Somebody else's programs and maps: ours under other names, which the kernel cannot tell from any other.

use std::{fs, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    programs::{
        SchedClassifier, TcAttachType, Xdp, links::FdLink, tc::SchedClassifierLink, xdp::XdpMode,
    },
};
use lb_common::names;

use super::Namespace;
use crate::require;

/// Loads the data path's object under other names: programs and maps that are not ours.
pub fn foreign() -> Ebpf {
    let mut object = fs::read(require::object_path()).expect("the object");
    for name in [names::LB_XDP, names::LB_INGRESS] {
        let (ours, theirs) = (format!("\0{name}\0"), format!("\0{}\0", theirs(name)));
        let places = object.windows(ours.len()).enumerate();
        let places = places.filter(|(_, bytes)| *bytes == ours.as_bytes());
        let places: Vec<usize> = places.map(|(at, _)| at).collect();
        for at in places {
            let place = object.get_mut(at..at + ours.len()).expect("found there");
            place.copy_from_slice(theirs.as_bytes());
        }
    }
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for &(name, entries) in names::MAPS {
        let least = if name == names::EVENTS { 65_536 } else { 64 };
        let entries = u32::try_from(entries).expect("a map's size").min(least);
        loader.map_max_entries(name, entries);
    }
    loader.load(&object).expect("the object loads")
}

/// `lb_xdp` becomes `xx_xdp`.
pub fn theirs(name: &str) -> String {
    name.replacen("lb", "xx", 1)
}

/// Somebody's XDP program on a device, for as long as the result lives.
pub fn foreign_xdp(lb: &Namespace, device: &'static str) -> Ebpf {
    lb.inside(|| {
        let mut ebpf = foreign();
        let program = ebpf.program_mut(&theirs(names::LB_XDP)).expect("a program");
        let program: &mut Xdp = program.try_into().expect("an XDP program");
        program.load().expect("it loads");
        let index = nix::net::if_::if_nametoindex(device).expect("a device");
        program
            .attach_to_if_index(index, XdpMode::Driver)
            .expect("it attaches");
        ebpf
    })
}

/// Somebody's program on a device's TCX ingress, pinned at `pin`. It leaves every packet to the next.
pub fn foreign_tcx(lb: &Namespace, device: &str, pin: &Path) {
    lb.inside(|| {
        let mut ebpf = foreign();
        let program = ebpf.program_mut(&theirs(names::LB_INGRESS));
        let program: &mut SchedClassifier = program
            .expect("a program")
            .try_into()
            .expect("a classifier");
        program.load().expect("it loads");
        let id = program.attach(device, TcAttachType::Ingress);
        let link: SchedClassifierLink =
            program.take_link(id.expect("it attaches")).expect("a link");
        let link: FdLink = link.try_into().expect("a TCX link");
        link.pin(pin).expect("it is pinned");
    });
}

/// Names of the programs on a device's TCX ingress, in their order.
pub fn tcx_programs(lb: &Namespace, device: &str) -> Vec<String> {
    let (_, programs) = lb.inside(|| {
        SchedClassifier::query_tcx(device, TcAttachType::Ingress).expect("TCX can be asked")
    });
    let names = programs
        .iter()
        .map(|info| info.name_as_str().unwrap_or_default().to_owned());
    names.collect()
}
