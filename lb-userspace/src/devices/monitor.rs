//! Following the network: one dump, then every change, gathered for at most five milliseconds.

use std::{collections::BTreeSet, io, net::IpAddr, sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tracing::{debug, info, warn};

use super::{
    features::{self, Family},
    network::{Change, Network},
    parse,
    tables::SnatPolicy,
    writer::DeviceWriter,
};
use crate::pins::PinDirectory;

/// Shortest time between two rises of the route generation: a storm of changes must not keep every
/// flow looking up its route.
const GATHER: Duration = Duration::from_millis(5);
/// How often everything is read again. The kernel may have told of something else than what is: messages overtake
/// each other when the socket was full, and a list is not of one moment.
const RESYNC: Duration = Duration::from_mins(1);
/// After a failure to write.
const RETRY: Duration = Duration::from_secs(1);

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Why the network cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// A socket failed.
    #[error("netlink: {what}")]
    Socket {
        /// The operation.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel did not answer as it should.
    #[error("netlink: {what}")]
    Request {
        /// The operation.
        what: String,
        /// The cause.
        #[source]
        source: rtnetlink::Error,
    },
    /// A map could not be read or written.
    #[error("device tables")]
    Tables(#[source] io::Error),
    /// The kernel's side of the socket is gone.
    #[error("netlink: the connection ended")]
    Ended,
}

/// The network at one moment.
#[derive(Clone, Debug, Default)]
pub struct NetworkView {
    /// Links and addresses.
    pub network: Network,
    /// Moves with every change of a route, link or address; not with neighbours.
    pub moved: u64,
    /// What the tables' SNAT addresses were decided by; `None` before anybody told.
    pub snat: Option<SnatPolicy>,
}

/// Looks up routes.
#[derive(Clone, Debug)]
pub struct Routes {
    handle: Handle,
}

impl Routes {
    /// The device packets to `address` leave by; `None` for an address of this node, or one no
    /// route leads to.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer.
    pub async fn device(&self, address: IpAddr) -> Result<Option<u32>, MonitorError> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let request = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, prefix)
            .map_err(|_invalid| MonitorError::Ended)?
            .build();
        let mut routes = Box::pin(self.handle.route().get(request).execute());
        match routes.try_next().await {
            Ok(route) => Ok(route.as_ref().and_then(parse::output_device)),
            // No route leads there.
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            Err(source) => Err(MonitorError::Request {
                what: format!("route to {address}"),
                source,
            }),
        }
    }
}

/// A running monitor.
#[derive(Debug)]
pub struct Monitor {
    /// The network, anew with each change.
    pub view: watch::Receiver<Arc<NetworkView>>,
    /// Where SNAT addresses come from. As long as it says nothing, those in the tables stay.
    pub snat: watch::Sender<Option<SnatPolicy>>,
    /// Looks up routes.
    pub routes: Routes,
    /// Ends only by failure.
    pub task: JoinHandle<MonitorError>,
}

/// Reads the network, writes the device tables, and goes on doing so in a task.
///
/// # Errors
///
/// If the network cannot be read or the tables cannot be written the first time.
pub async fn monitor(pins: &PinDirectory) -> Result<Monitor, MonitorError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ];
    let failed = |source| MonitorError::Socket {
        what: "open a route socket",
        source,
    };
    // Two sockets: an answer must not wait behind a storm of changes. Changes first, so that none
    // falls between the dump and the watch.
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups).map_err(failed)?;
    tokio::spawn(connection);
    let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
    tokio::spawn(connection);
    let family = features::family();
    if let Err(error) = &family {
        warn!(%error, "the kernel does not tell which devices XDP may redirect to: drivers decide");
    }
    let writer = DeviceWriter::open(pins).map_err(MonitorError::Tables)?;
    let (snat, policy) = watch::channel(None);
    let mut follower = Follower {
        network: dump(&handle).await?,
        handle: handle.clone(),
        messages,
        notifications: family.as_ref().ok().and_then(|f| notifications(*f)),
        family: family.ok(),
        snat: policy,
        decided_by: None,
        writer,
        view: watch::channel(Arc::default()).0,
        moved: 0,
        lost: false,
        absent: BTreeSet::new(),
    };
    let view = follower.view.subscribe();
    follower
        .flush(Change::Tables)
        .map_err(MonitorError::Tables)?;
    let task = tokio::spawn(follower.run());
    Ok(Monitor {
        view,
        snat,
        routes: Routes { handle },
        task,
    })
}

struct Follower {
    network: Network,
    handle: Handle,
    messages: Messages,
    family: Option<Family>,
    notifications: Option<TokioSocket>,
    snat: watch::Receiver<Option<SnatPolicy>>,
    /// What the SNAT addresses in the tables were decided by.
    decided_by: Option<SnatPolicy>,
    writer: DeviceWriter,
    view: watch::Sender<Arc<NetworkView>>,
    moved: u64,
    /// The kernel had more to tell than the socket could hold.
    lost: bool,
    /// SNAT addresses that no device has.
    absent: BTreeSet<IpAddr>,
}

impl Follower {
    async fn run(mut self) -> MonitorError {
        let mut flushed = Instant::now();
        let mut resync = interval_at(flushed + RESYNC, RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut change = tokio::select! {
                change = self.change() => match change {
                    Ok(change) => change,
                    Err(error) => return error,
                },
                _ = resync.tick() => self.read_again().await,
            };
            // The first change after a pause is told at once, the others together.
            let due = flushed + GATHER;
            while let Ok(more) = tokio::time::timeout_at(due, self.change()).await {
                match more {
                    Ok(more) => change = change.max(more),
                    Err(error) => return error,
                }
            }
            if change == Change::Nothing {
                continue;
            }
            if std::mem::take(&mut self.lost) {
                warn!("netlink changes were lost: reading everything again");
                self.network = match dump(&self.handle).await {
                    Ok(network) => network,
                    Err(error) => return error,
                };
            }
            while let Err(error) = self.flush(change) {
                warn!(%error, "device tables not written");
                tokio::time::sleep(RETRY).await;
            }
            flushed = Instant::now();
        }
    }

    /// Compares with what is. A change on its way to us may be seen already; it will then change nothing.
    async fn read_again(&mut self) -> Change {
        let found = match self.list().await {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "the network cannot be read again");
                return Change::Nothing;
            }
        };
        let change = self.network.difference(&found);
        if change != Change::Nothing {
            debug!(?change, "the network was not as it was told of");
            self.network = found;
        }
        change
    }

    /// What is, in the order we know it. A list that says something else of a device is made twice: one of many parts
    /// may leave out what stands where something went meanwhile.
    async fn list(&self) -> Result<Network, MonitorError> {
        let mut found = dump(&self.handle).await?;
        found.order_as(&self.network);
        if self.network.difference(&found) != Change::Tables {
            return Ok(found);
        }
        let mut again = dump(&self.handle).await?;
        again.order_as(&self.network);
        Ok(if found.difference(&again) == Change::Tables {
            // It changes just now: we are being told.
            self.network.clone()
        } else {
            again
        })
    }

    /// Waits for something to happen. May be cancelled: nothing taken in is lost.
    async fn change(&mut self) -> Result<Change, MonitorError> {
        let notified = async {
            match &self.notifications {
                Some(socket) => socket.recv_from_full().await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            message = self.messages.next() => message,
            result = notified => {
                if let Err(error) = result {
                    debug!(%error, "netdev notifications were lost");
                }
                return Ok(Change::Tables);
            }
            // Nobody tells any more when the agent ends, and then so do we.
            Ok(()) = self.snat.changed() => return Ok(Change::Tables),
        };
        let Some((message, _)) = message else {
            return Err(MonitorError::Ended);
        };
        match message.payload {
            NetlinkPayload::InnerMessage(message) => Ok(parse::take(&mut self.network, &message)),
            NetlinkPayload::Overrun(_) => {
                self.lost = true;
                Ok(Change::Tables)
            }
            _ => Ok(Change::Nothing),
        }
    }

    /// Writes what changed, then tells the data path and the agent.
    fn flush(&mut self, change: Change) -> io::Result<()> {
        if change == Change::Tables {
            let snat = self.snat.borrow_and_update().clone();
            let redirectable = self.redirectable();
            let room = self.writer.room();
            let next =
                self.writer
                    .written
                    .decide(&self.network, &redirectable, snat.as_ref(), room);
            self.report(&next);
            self.tell_absent(snat.as_ref());
            self.writer.write(next)?;
            self.decided_by = snat;
        }
        self.writer.raise_generation()?;
        if change >= Change::Routes {
            self.moved += 1;
            let view = NetworkView {
                network: self.network.clone(),
                moved: self.moved,
                snat: self.decided_by.clone(),
            };
            self.view.send_replace(Arc::new(view));
        }
        debug!(?change, "network changed");
        Ok(())
    }

    /// Warns of SNAT addresses that were given to us and that no device has. They may be routed here all the same.
    fn tell_absent(&mut self, snat: Option<&SnatPolicy>) {
        let given = snat.iter().flat_map(|snat| &snat.addresses).copied();
        let absent: BTreeSet<_> = given.filter(|it| !self.network.has_address(*it)).collect();
        for address in absent.difference(&self.absent) {
            warn!(
                %address,
                "no device of this node has this SNAT address: unless it is routed here, no reply arrives"
            );
        }
        self.absent = absent;
    }

    fn redirectable(&self) -> BTreeSet<u32> {
        let Some(family) = self.family else {
            return by_driver(&self.network);
        };
        features::ask(family).unwrap_or_else(|error| {
            warn!(%error, "XDP features unknown: the fast path redirects to no device for now");
            BTreeSet::new()
        })
    }

    fn report(&self, next: &super::DeviceTables) {
        for (index, device) in &next.devices {
            if self.writer.written.devices.get(index) != Some(device) {
                let name = self
                    .network
                    .links()
                    .get(&device.ifindex)
                    .map(|link| &link.name);
                let redirect = device.flags & lb_common::device::device_flag::REDIRECT != 0;
                info!(
                    name,
                    ifindex = device.ifindex,
                    mtu = device.mtu,
                    redirect,
                    "device"
                );
            }
        }
    }
}

/// Subscribes to changes of XDP features. Without, link changes alone make us ask again.
fn notifications(family: Family) -> Option<TokioSocket> {
    let group = family.changes?;
    let open = || {
        let mut socket = TokioSocket::new(protocols::NETLINK_GENERIC)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(group)?;
        Ok::<_, io::Error>(socket)
    };
    open()
        .inspect_err(|error| warn!(%error, "no notifications of XDP features"))
        .ok()
}

/// Drivers known to take redirected frames, for kernels that cannot be asked.
fn by_driver(network: &Network) -> BTreeSet<u32> {
    const KNOWN: [&str; 11] = [
        "i40e",
        "ice",
        "igb",
        "igc",
        "ixgbe",
        "mlx4_en",
        "mlx5_core",
        "bnxt_en",
        "ena",
        "nfp",
        "virtio_net",
    ];
    let driver = |name: &str| {
        let link = std::fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    };
    let known = network
        .links()
        .iter()
        .filter(|(_, link)| driver(&link.name).is_some_and(|d| KNOWN.contains(&d.as_str())));
    known.map(|(ifindex, _)| *ifindex).collect()
}

async fn dump(handle: &Handle) -> Result<Network, MonitorError> {
    let mut network = Network::default();
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| MonitorError::Request { what, source }
    };
    let mut links = Box::pin(handle.link().get().execute());
    while let Some(link) = links.try_next().await.map_err(failed("list links"))? {
        parse::take(&mut network, &RouteNetlinkMessage::NewLink(link));
    }
    let mut addresses = Box::pin(handle.address().get().execute());
    while let Some(address) = addresses
        .try_next()
        .await
        .map_err(failed("list addresses"))?
    {
        parse::take(&mut network, &RouteNetlinkMessage::NewAddress(address));
    }
    let mut neighbours = Box::pin(handle.neighbours().get().execute());
    while let Some(neighbour) = neighbours
        .try_next()
        .await
        .map_err(failed("list neighbours"))?
    {
        parse::take(&mut network, &RouteNetlinkMessage::NewNeighbour(neighbour));
    }
    Ok(network)
}
