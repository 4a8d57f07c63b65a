//! The one device feature that decides whether XDP sees a frame as it was on the wire.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::invalid;

/// `ETHTOOL_GFLAGS`.
const GET_FLAGS: u32 = 0x25;
/// `ETH_FLAG_RXVLAN`.
const RECEIVE_VLAN: u32 = 1 << 8;
/// `SIOCETHTOOL`.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether the device strips VLAN tags before XDP (`rx-vlan-offload` of ethtool).
///
/// # Errors
///
/// If there is no such device. A driver without the question counts as "no".
pub fn receive_vlan_offload(interface: &str) -> io::Result<bool> {
    let mut value = Value {
        command: GET_FLAGS,
        data: 0,
    };
    // SAFETY: a zeroed `ifreq` is valid.
    let mut request = unsafe { std::mem::zeroed::<libc::ifreq>() };
    if interface.len() >= request.ifr_name.len() {
        return Err(invalid(format!("interface name {interface} is too long")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel gave us this descriptor just now.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `request` names a device and points to a `Value`, both alive during the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result == 0 {
        return Ok(value.data & RECEIVE_VLAN != 0);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
        Ok(false)
    } else {
        Err(error)
    }
}
