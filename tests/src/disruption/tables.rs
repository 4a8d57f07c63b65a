//! What the kernel's tables hold, whichever layout serves.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use lb_common::{
    addr::Be16,
    flow::protocol::TCP,
    names,
    service::{Frontend, FrontendKey4, FrontendKey6, Selection, Service},
};
use lb_userspace::{
    kernel::{self, Link, Map},
    pins::PinDirectory,
};

/// The pins of one agent.
#[derive(Clone, Debug)]
pub struct Tables {
    root: PathBuf,
}

impl Tables {
    /// Below a directory.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Every directory of pins that can be read: two while the layout changes.
    fn directories(&self) -> Vec<PinDirectory> {
        PinDirectory::find(&self.root).unwrap_or_default()
    }

    /// Lengths of the Maglev tables behind frontends, by the first layout that knows all of them.
    pub fn lengths(&self, frontends: &[SocketAddr]) -> Option<Vec<u32>> {
        self.directories().iter().find_map(|pins| {
            let length = |frontend| length(pins, frontend);
            frontends.iter().copied().map(length).collect()
        })
    }

    /// The programs behind the links, by the names of these. Empty if there are none.
    pub fn programs(&self) -> Vec<(String, u32)> {
        let mut all = Vec::new();
        for pins in self.directories() {
            for name in pins.links() {
                let link = kernel::open_pinned(&pins.link(&name)).map(Link::from);
                if let Ok(info) = link.and_then(|link| link.info()) {
                    all.push((name, info.program));
                }
            }
        }
        all.sort();
        all
    }

    /// Names of the directories, which tell layouts apart.
    pub fn layouts(&self) -> Vec<String> {
        let all = self.directories();
        all.iter().map(|pins| pins.hash().to_owned()).collect()
    }
}

fn length(pins: &PinDirectory, frontend: SocketAddr) -> Option<u32> {
    let port = Be16::new(frontend.port());
    let protocol = TCP.into();
    let open = |name| Map::open_pinned(&pins.map(name)).ok();
    let found: Option<Frontend> = match frontend.ip() {
        IpAddr::V4(v4) => {
            let key = FrontendKey4 {
                address: v4.into(),
                port,
                protocol,
            };
            open(names::FRONTENDS_V4)?.lookup(&key).ok()?
        }
        IpAddr::V6(v6) => {
            let key = FrontendKey6 {
                address: v6.into(),
                port,
                protocol,
            };
            open(names::FRONTENDS_V6)?.lookup(&key).ok()?
        }
    };
    let services = open(names::SERVICES)?;
    let service: Service = services.lookup(&found?.service).ok()??;
    Some(Selection::from_word(service.cluster).length)
}
