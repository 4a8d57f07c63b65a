//! Traffic is counted by id: what an id counted for something else is forgotten.

use std::{io, mem::offset_of, net::IpAddr};

use lb_common::{
    service::{Backend4, Backend6, Service, service_flag},
    traffic::Traffic,
};

use super::BpfDataplane;
use crate::tables::BackendRecord;

impl BpfDataplane {
    /// To be called before service ports are published: those that were not live begin at zero. No
    /// flow names them, or their ids would not have been given away.
    pub(super) fn begin_services(&self, ids: impl IntoIterator<Item = u32>) -> io::Result<()> {
        let new: Vec<u32> = ids.into_iter().filter(|id| !self.is_live(*id)).collect();
        self.maps.service_traffic.zero_per_cpu::<Traffic>(&new)
    }

    /// As [`Self::begin_services`], for backends: those of another incarnation begin at zero.
    pub(super) fn begin_backends(
        &self,
        backends: impl IntoIterator<Item = (u32, BackendRecord)>,
    ) -> io::Result<()> {
        let mut new = Vec::new();
        for (id, record) in backends {
            let known = match record.endpoint.ip() {
                IpAddr::V4(_) => {
                    let known = self.maps.backends_v4.lookup::<u32, Backend4>(&id)?;
                    known.map(|backend| backend.incarnation)
                }
                IpAddr::V6(_) => {
                    let known = self.maps.backends_v6.lookup::<u32, Backend6>(&id)?;
                    known.map(|backend| backend.incarnation)
                }
            };
            if known != Some(record.incarnation) {
                new.push(id);
            }
        }
        self.maps.backend_traffic.zero_per_cpu::<Traffic>(&new)
    }

    fn is_live(&self, service: u32) -> bool {
        let services = &self.maps.services;
        let flags = services.load_u32(services.offset(service) + offset_of!(Service, flags));
        flags.is_some_and(|flags| flags & service_flag::LIVE != 0)
    }
}
