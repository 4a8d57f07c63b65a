//! The device tables in the kernel, written as far as they differ.

use std::{io, mem::offset_of};

use lb_common::{
    addr::{Addr4, Addr6},
    control::Control,
    device::{Device, SnatAddress},
    flow::{filter_position4, filter_position6},
    names,
};

use super::tables::{DeviceTables, Room};
use crate::{
    kernel::{Map, Mapping},
    pins::PinDirectory,
};

/// Writes the tables, as far as they changed.
#[derive(Debug)]
pub(super) struct DeviceWriter {
    devices: Map,
    index: Map,
    snat_v4: Map,
    snat_v6: Map,
    filter: Mapping,
    control: Mapping,
    /// What the maps hold.
    pub(super) written: DeviceTables,
}

impl DeviceWriter {
    /// Opens the maps and reads what an earlier agent left in them.
    ///
    /// # Errors
    ///
    /// If a map cannot be opened or read.
    pub(super) fn open(pins: &PinDirectory) -> io::Result<Self> {
        let open = |name: &str| Map::open_pinned(&pins.map(name));
        let (devices, index) = (open(names::DEVICES)?, open(names::DEVICE_INDEX)?);
        let (snat_v4, snat_v6) = (open(names::SNAT_V4)?, open(names::SNAT_V6)?);
        let live = |map: &Map| {
            let all = map.read_all::<u32, SnatAddress>()?;
            Ok::<_, io::Error>(all.into_iter().filter(|(_, e)| e.port_count != 0).collect())
        };
        let all = devices.read_all::<u32, Device>()?;
        let written = DeviceTables {
            devices: all
                .into_iter()
                .filter(|(_, device)| device.ifindex != 0)
                .collect(),
            snat_v4: live(&snat_v4)?,
            snat_v6: live(&snat_v6)?,
        };
        Ok(Self {
            devices,
            index,
            snat_v4,
            snat_v6,
            filter: Mapping::new(&open(names::ADDRESS_FILTER)?)?,
            control: Mapping::new(&open(names::CONTROL)?)?,
            written,
        })
    }

    pub(super) fn room(&self) -> Room {
        let snat = self
            .snat_v4
            .info()
            .max_entries
            .min(self.snat_v6.info().max_entries);
        Room {
            devices: self.devices.info().max_entries,
            snat,
        }
    }

    /// Writes what differs: what a device names before the device, devices before their index.
    ///
    /// # Errors
    ///
    /// If a map cannot be written; the next call writes the same again.
    pub(super) fn write(&mut self, next: DeviceTables) -> io::Result<()> {
        for (map, old, new, v4) in [
            (&self.snat_v4, &self.written.snat_v4, &next.snat_v4, true),
            (&self.snat_v6, &self.written.snat_v6, &next.snat_v6, false),
        ] {
            for (element, address) in new.iter().filter(|(e, a)| old.get(e) != Some(a)) {
                self.mark(address, v4)?;
                map.update(element, address)?;
            }
        }
        for (index, device) in &next.devices {
            if self.written.devices.get(index) != Some(device) {
                self.devices.update(index, device)?;
                self.index.update(&device.ifindex, index)?;
            }
        }
        for (index, device) in &self.written.devices {
            if next
                .devices
                .get(index)
                .is_none_or(|new| new.ifindex != device.ifindex)
            {
                if next
                    .devices
                    .values()
                    .all(|new| new.ifindex != device.ifindex)
                {
                    self.index.delete(&device.ifindex)?;
                }
                if !next.devices.contains_key(index) {
                    self.devices.update(index, &Device::default())?;
                }
            }
        }
        for (map, old, new) in [
            (&self.snat_v4, &self.written.snat_v4, &next.snat_v4),
            (&self.snat_v6, &self.written.snat_v6, &next.snat_v6),
        ] {
            for element in old.keys().filter(|element| !new.contains_key(element)) {
                map.update(element, &SnatAddress::default())?;
            }
        }
        self.written = next;
        Ok(())
    }

    /// Tells the data path that routes or neighbours moved.
    pub(super) fn raise_generation(&self) -> io::Result<()> {
        let generation = offset_of!(Control, route_generation);
        self.control.add_u32(generation, 1).map(drop)
    }

    /// Replies to an SNAT address must be looked at before the first of them is sent for.
    fn mark(&self, element: &SnatAddress, v4: bool) -> io::Result<()> {
        let Addr6([first, ..]) = element.address;
        let (word, bit) = if v4 {
            filter_position4(Addr4(first))
        } else {
            filter_position6(element.address)
        };
        self.filter.or_u64(word as usize * 8, 1 << bit)
    }
}
