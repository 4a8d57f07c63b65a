//! The data path as a whole: what is attached where, how full the maps are, is the agent there.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::PathBuf,
};

use serde::Serialize;

use crate::{
    attach::parse_link_name,
    kernel::{Hook, LinkInfo},
    view::{
        render::{self, Output},
        usage::MapUse,
    },
};

/// The state of the data path.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The pin directory of the layout.
    pub directory: PathBuf,
    /// The layout hash.
    pub layout: String,
    /// Other layouts under the same root, newest first.
    pub other_layouts: Vec<String>,
    /// The agent.
    pub agent: Agent,
    /// The data path's clock; none if its program is not pinned.
    pub tick: Option<u32>,
    /// Programs pinned beside the links.
    pub programs: Vec<Program>,
    /// What is attached.
    pub attachments: Vec<Attachment>,
    /// Flows established now.
    pub established_flows: usize,
    /// The maps.
    pub maps: Vec<MapUse>,
}

/// The agent of this node.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// True if it holds its lock; none if that cannot be known.
    pub running: Option<bool>,
    /// The lock file.
    pub lock_file: PathBuf,
}

/// A pinned program.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    /// Name of its pin.
    pub name: String,
    /// Kernel id.
    pub id: u32,
}

/// A program on a device.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Name of the interface, `#ifindex` if it is gone; none for a tracepoint.
    pub interface: Option<String>,
    /// Kernel's index of the interface; none for a tracepoint.
    pub ifindex: Option<u32>,
    /// `xdp`, `ingress`, `egress`, or the name of a tracepoint's program.
    pub hook: String,
    /// `native`, `generic`, `tcx`, `tracepoint`, or `detached` once the device is gone.
    pub mode: &'static str,
    /// Kernel id of the program.
    pub program: u32,
}

/// A pinned link as a row. Links that sit on no device are tracepoints.
pub fn attachment(name: &str, info: LinkInfo, interfaces: &BTreeMap<u32, String>) -> Attachment {
    let Some((hook, ifindex)) = parse_link_name(name) else {
        return Attachment {
            interface: None,
            ifindex: None,
            hook: name.into(),
            mode: "tracepoint",
            program: info.program,
        };
    };
    let (hook, mode) = match hook {
        Hook::XdpNative => ("xdp", "native"),
        Hook::XdpGeneric => ("xdp", "generic"),
        Hook::TcxIngress => ("ingress", "tcx"),
        Hook::TcxEgress => ("egress", "tcx"),
    };
    let interface = interfaces.get(&ifindex).cloned();
    Attachment {
        interface: Some(interface.unwrap_or_else(|| format!("#{ifindex}"))),
        ifindex: Some(ifindex),
        hook: hook.into(),
        mode: if info.ifindex == 0 { "detached" } else { mode },
        program: info.program,
    }
}

/// Writes the status.
///
/// # Errors
///
/// If `writer` fails.
pub fn write(status: &Status, output: Output, writer: &mut dyn Write) -> io::Result<()> {
    if output == Output::Json {
        return render::json(status, writer);
    }
    let agent = match status.agent.running {
        Some(true) => "running".into(),
        Some(false) => "not running; flows go on, changes wait".into(),
        None => format!(
            "unknown ({} cannot be read)",
            status.agent.lock_file.display()
        ),
    };
    writeln!(writer, "layout       {}", status.layout)?;
    writeln!(writer, "pins         {}", status.directory.display())?;
    if !status.other_layouts.is_empty() {
        writeln!(writer, "also there   {}", status.other_layouts.join(", "))?;
    }
    writeln!(writer, "agent        {agent}")?;
    let tick = status
        .tick
        .map_or_else(|| "unknown".into(), |tick| tick.to_string());
    writeln!(writer, "tick         {tick}")?;
    writeln!(writer, "established  {} flows", status.established_flows)?;
    let names: Vec<_> = status
        .programs
        .iter()
        .map(|program| format!("{} (id {})", program.name, program.id))
        .collect();
    writeln!(writer, "programs     {}", names.join(", "))?;
    writeln!(writer)?;
    if status.attachments.is_empty() {
        writeln!(
            writer,
            "Nothing is attached: no packet meets the data path."
        )?;
    }
    render::table(&status.attachments, writer)?;
    writeln!(writer)?;
    let lines: Vec<_> = status.maps.iter().map(MapLine::from).collect();
    render::table(&lines, writer)
}

/// A map as the status table shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MapLine {
    map: &'static str,
    used: Option<usize>,
    capacity: u32,
    used_percent: Option<f64>,
}

impl From<&MapUse> for MapLine {
    fn from(map: &MapUse) -> Self {
        let used = map.used.and_then(|used| u32::try_from(used).ok());
        Self {
            map: map.map,
            used: map.used,
            capacity: map.capacity,
            used_percent: used
                .filter(|_| map.capacity > 0)
                .map(|used| f64::from(used) * 100.0 / f64::from(map.capacity)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        let map = |map, used, capacity| MapUse {
            name: "flows",
            map,
            kind: "hash".into(),
            used,
            capacity,
            key_bytes: 16,
            value_bytes: 48,
        };
        Status {
            directory: "/sys/fs/bpf/sluice/00112233445566aa".into(),
            layout: "00112233445566aa".into(),
            other_layouts: vec!["ffffffffffffffff".into()],
            agent: Agent {
                running: Some(false),
                lock_file: "/run/sluice/agent.lock".into(),
            },
            tick: Some(1234),
            programs: vec![Program {
                name: "lb_clock".into(),
                id: 40,
            }],
            attachments: vec![
                Attachment {
                    interface: Some("eth0".into()),
                    ifindex: Some(2),
                    hook: "xdp".into(),
                    mode: "native",
                    program: 41,
                },
                Attachment {
                    interface: Some("eth0".into()),
                    ifindex: Some(2),
                    hook: "ingress".into(),
                    mode: "tcx",
                    program: 42,
                },
            ],
            established_flows: 7,
            maps: vec![
                map("FLOWS_V4", Some(14), 1024),
                map("CLOSING_V4", None, 512),
            ],
        }
    }

    fn text(status: &Status, output: Output) -> String {
        let mut bytes = Vec::new();
        write(status, output, &mut bytes).expect("a Vec takes every byte");
        String::from_utf8(bytes).expect("the status is text")
    }

    #[test]
    fn status_as_text() {
        insta::assert_snapshot!(text(&status(), Output::Table), @r#"
        layout       00112233445566aa
        pins         /sys/fs/bpf/sluice/00112233445566aa
        also there   ffffffffffffffff
        agent        not running; flows go on, changes wait
        tick         1234
        established  7 flows
        programs     lb_clock (id 40)

        INTERFACE  IFINDEX  HOOK     MODE    PROGRAM
        eth0             2  xdp      native       41
        eth0             2  ingress  tcx          42

        MAP         USED  CAPACITY  USED PERCENT
        FLOWS_V4      14      1024           1.4
        CLOSING_V4     -       512             -
        "#);
    }

    #[test]
    fn status_as_json_parses() {
        let json: serde_json::Value =
            serde_json::from_str(&text(&status(), Output::Json)).expect("valid JSON");
        assert_eq!(json["agent"]["running"], false);
        assert_eq!(json["attachments"][0]["mode"], "native");
        assert_eq!(json["maps"][1]["used"], serde_json::Value::Null);
    }

    #[test]
    fn nothing_attached_is_said() {
        let status = Status {
            attachments: vec![],
            ..status()
        };
        assert!(text(&status, Output::Table).contains("Nothing is attached"));
    }

    #[test]
    fn pinned_links_as_rows() {
        let interfaces = [(7, "eth1".to_owned())].into();
        let info = |ifindex| LinkInfo {
            kind: 6,
            id: 1,
            program: 9,
            ifindex,
            attach_type: 0,
        };
        let cases = [
            ("xdp-7", 7, (Some("eth1"), "xdp", "native")),
            ("xdpgeneric-7", 7, (Some("eth1"), "xdp", "generic")),
            ("ingress-7", 7, (Some("eth1"), "ingress", "tcx")),
            ("xdp-8", 8, (Some("#8"), "xdp", "native")),
            ("egress-9", 0, (Some("#9"), "egress", "detached")),
            (
                "lb_redirect_err",
                0,
                (None, "lb_redirect_err", "tracepoint"),
            ),
        ];
        for (name, ifindex, expected) in cases {
            let row = attachment(name, info(ifindex), &interfaces);
            let found = (row.interface.as_deref(), row.hook.as_str(), row.mode);
            assert_eq!(found, expected, "{name}");
        }
    }
}
