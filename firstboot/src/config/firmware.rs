//! Settings from the hypervisor: SMBIOS OEM strings (DMTF DSP0134, type 11), the OVF environment document (DMTF DSP0243) and VMware's guestinfo.

use layers::settings::{Item, parse};
use roxmltree::{Document, Node};

use super::{Said, volume};
use crate::host::Host;

/// `chasi-bod:key=value` OEM strings; `None` when the machine has no SMBIOS table.
pub fn smbios(host: &Host) -> Said {
    let table = host.read_bytes("sys/firmware/dmi/tables/DMI").ok().flatten()?;
    let strings = oem_strings(&table).into_iter().enumerate();
    let item = |(n, text): (usize, String)| {
        let (key, value) = text.strip_prefix("chasi-bod:")?.split_once('=')?;
        Some(Item::text(key, value, format!("SMBIOS OEM string {}", n + 1)))
    };
    Some(Ok(strings.filter_map(item).collect()))
}

/// Strings of all type 11 structures; a damaged table ends the walk.
fn oem_strings(table: &[u8]) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), table);
    while let [kind, length, ..] = *rest {
        let Some(body) = rest.get(usize::from(length).max(4)..) else { break };
        let Some(end) = body.windows(2).position(|pair| pair == [0, 0]) else { break };
        if kind == 11 {
            found.extend(body[..end].split(|b| *b == 0).map(|text| String::from_utf8_lossy(text).into_owned()));
        }
        rest = &body[end + 2..];
    }
    found
}

/// Namespace of the OVF environment document and of its attributes.
const ENVIRONMENT: &str = "http://schemas.dmtf.org/ovf/environment/1";

/// Properties `chasi.<key>` of `ovf-env.xml` on a volume labelled `OVF ENV`.
pub fn ovf(host: &Host) -> Said {
    volume::read(host, "OVF ENV", |dir| {
        let text = volume::file(dir, "ovf-env.xml").map_err(|why| format!("OVF environment: {why}"))?;
        properties(&text)
    })
}

/// What VMware's host tells its guest: the OVF environment again, and a document of settings in `guestinfo.chasi-bod`. `None` elsewhere.
pub fn guestinfo(host: &Host) -> Said {
    if !host.is_live() || !vmw_backdoor::is_vmware_cpu() {
        return None;
    }
    // A locked-down kernel grants no access to ports; VMware's answers all the same.
    let access = vmw_backdoor::access_backdoor_privileged().or_else(|_| vmw_backdoor::access_backdoor());
    let mut access = match access {
        Ok(access) => access,
        Err(why) => return Some(Err(vec![format!("guestinfo: {why}")])),
    };
    Some(told_by_host(|key| {
        let mut channel = access.open_enhanced_chan().map_err(|why| why.to_string())?;
        let value = channel.get_guestinfo(key.as_bytes()).map_err(|why| why.to_string())?;
        Ok(value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }))
}

/// The items of both values; one that cannot be read does not cost the other.
fn told_by_host(mut get: impl FnMut(&str) -> Result<Option<String>, String>) -> Result<Vec<Item>, Vec<String>> {
    let (environment, document) = ("guestinfo.ovfEnv", "guestinfo.chasi-bod");
    let mut read = |key: &str, items: &dyn Fn(&str) -> Result<Vec<Item>, String>| match get(key) {
        Ok(Some(text)) if !text.trim().is_empty() => items(&text),
        Ok(_) => Ok(Vec::new()),
        Err(why) => Err(format!("{key}: {why}")),
    };
    let said = [read(environment, &properties), read(document, &|text| parse(text, document))];
    let (good, bad): (Vec<_>, Vec<_>) = said.into_iter().partition(Result::is_ok);
    let problems: Vec<String> = bad.into_iter().filter_map(Result::err).collect();
    if problems.is_empty() { Ok(good.into_iter().flatten().flatten().collect()) } else { Err(problems) }
}

/// Properties of this machine; those of other machines that were imported with it are in elements of their own. Empty ones say nothing.
fn properties(text: &str) -> Result<Vec<Item>, String> {
    let refused = |why: String| format!("OVF environment: {why}");
    let document = Document::parse(text).map_err(|why| refused(why.to_string()))?;
    if document.root_element().tag_name().name() != "Environment" {
        return Err(refused("it is none".into()));
    }
    let sections = document.root_element().children().filter(|node| node.tag_name().name() == "PropertySection");
    let attribute = |node: Node<'_, '_>, name: &str| node.attribute((ENVIRONMENT, name)).or_else(|| node.attribute(name)).map(str::to_string);
    let property = |node| {
        let (key, value) = (attribute(node, "key")?, attribute(node, "value")?);
        Some(Item::text(key.strip_prefix("chasi.")?, value, format!("OVF property {key}"))).filter(|item| item.value != "")
    };
    Ok(sections.flat_map(|section| section.children()).filter(|node| node.tag_name().name() == "Property").filter_map(property).collect())
}

/// A table with one type 1 and one type 11 structure, for tests.
#[cfg(test)]
pub fn table(strings: &[&str]) -> Vec<u8> {
    let mut out = vec![1, 6, 0, 0, 1, 0];
    out.extend(b"maker\0\0");
    out.extend([11, 5, 1, 0, strings.len() as u8]);
    strings.iter().for_each(|text| out.extend([text.as_bytes(), b"\0"].concat()));
    out.extend([0, 127, 4, 2, 0, 0, 0]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oem_strings_are_found_and_a_cut_table_is_survived() {
        let table = table(&["other", "chasi-bod:hostname=a"]);
        assert_eq!(oem_strings(&table), ["other", "chasi-bod:hostname=a"]);
        (0..table.len()).for_each(|n| _ = oem_strings(&table[..n]));
    }

    const OVF: &str = "<?xml version=\"1.0\"?>\n<Environment xmlns=\"http://schemas.dmtf.org/ovf/environment/1\" \
        xmlns:oe='http://schemas.dmtf.org/ovf/environment/1' oe:id=\"a\"><PlatformSection><Kind>VMware ESXi</Kind></PlatformSection><PropertySection>\n\
        <Property oe:key=\"chasi.hostname\" oe:value=\"a&amp;b&#x41;\"/><Property oe:value='x=1' oe:key='chasi.url'/>\
        <Property oe:key=\"chasi.time.zone\" oe:value=\"\"/><Property oe:key=\"other\" oe:value=\"1\"/></PropertySection>\
        <Entity oe:id=\"b\"><PropertySection><Property oe:key=\"chasi.hostname\" oe:value=\"b\"/></PropertySection></Entity></Environment>\n";

    fn pairs(items: Vec<Item>) -> Vec<(String, serde_json::Value)> {
        items.into_iter().map(|i| (i.key, i.value)).collect()
    }

    #[test]
    fn ovf_properties_of_this_machine_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        host.write("volumes/OVF ENV/ovf-env.xml", OVF.as_bytes(), 0o644).unwrap();
        let items = ovf(&host).unwrap().unwrap();
        assert_eq!(items[0].source, "OVF property chasi.hostname");
        assert_eq!(pairs(items), [("hostname".to_string(), "a&bA".into()), ("url".into(), "x=1".into())]);
        host.write("volumes/OVF ENV/ovf-env.xml", &OVF.as_bytes()[..OVF.len() - 5], 0o644).unwrap();
        assert!(ovf(&host).unwrap().unwrap_err()[0].starts_with("OVF environment: "));
        assert_eq!(properties("<html/>"), Err("OVF environment: it is none".into()));
    }

    #[test]
    fn what_vmwares_host_says_is_read_and_one_bad_value_is_named() {
        let document = "cluster: {role: member}\n";
        let host =
            |ovf: Result<Option<String>, String>| told_by_host(|key| if key == "guestinfo.ovfEnv" { ovf.clone() } else { Ok(Some(document.into())) });
        let role = ("cluster.role".to_string(), serde_json::Value::from("member"));
        assert_eq!(pairs(host(Ok(None)).unwrap()), std::slice::from_ref(&role));
        assert_eq!(pairs(host(Ok(Some(OVF.into()))).unwrap()).last(), Some(&role));
        assert_eq!(host(Err("no channel".into())), Err(vec!["guestinfo.ovfEnv: no channel".into()]));
        assert!(host(Ok(Some("<Environment".into()))).unwrap_err()[0].starts_with("OVF environment: "));
        let dir = tempfile::tempdir().unwrap();
        assert!(guestinfo(&Host::new(dir.path())).is_none(), "a folder has no host");
    }
}
