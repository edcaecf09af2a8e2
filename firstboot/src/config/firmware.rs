//! Settings from the hypervisor: SMBIOS OEM strings (DMTF DSP0134, type 11) and the OVF environment document (DMTF DSP0243).

use layers::settings::Item;

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

/// Properties `chasi.<key>` of `ovf-env.xml` on a volume labelled `OVF ENV`.
pub fn ovf(host: &Host) -> Said {
    volume::read(host, "OVF ENV", |dir| {
        let place = "OVF environment";
        let text = volume::file(dir, "ovf-env.xml").map_err(|why| format!("{place}: {why}"))?;
        if !text.trim_end().ends_with('>') || !text.contains("Environment") {
            return Err(format!("{place}: ovf-env.xml is cut or no OVF environment"));
        }
        let property = |element: &str| {
            let key = attribute(element, "key")?;
            let value = attribute(element, "value")?;
            Some(Item::text(key.strip_prefix("chasi.")?, value, format!("OVF property {key}"))).filter(|item| item.value != "")
        };
        Ok(text.split('<').filter(|element| local_name(element) == "Property").filter_map(property).collect())
    })
}

fn local_name(element: &str) -> &str {
    let name = element.split(|c: char| c.is_whitespace() || c == '/' || c == '>').next().unwrap_or_default();
    name.rsplit(':').next().unwrap_or_default()
}

/// An attribute by its local name, with the five entities of XML resolved.
fn attribute(element: &str, name: &str) -> Option<String> {
    let mut rest = element;
    while let Some((before, after)) = rest.split_once('=') {
        let quote = after.trim_start().chars().next().filter(|c| "\"'".contains(*c))?;
        let (value, tail) = after.trim_start()[1..].split_once(quote)?;
        if before.trim().rsplit([':', ' ', '\n', '\t']).next() == Some(name) {
            let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
            return Some(entities.iter().fold(value.to_string(), |text, (from, to)| text.replace(from, to)));
        }
        rest = tail;
    }
    None
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

    #[test]
    fn ovf_properties_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        let xml = "<?xml version=\"1.0\"?>\n<Environment xmlns:oe='http://schemas.dmtf.org/ovf/environment/1'><PropertySection>\n\
            <Property oe:key=\"chasi.hostname\" oe:value=\"a&amp;b\"/><Property oe:value='x=1' oe:key='chasi.url'/>\
            <Property oe:key=\"chasi.time.zone\" oe:value=\"\"/></PropertySection></Environment>\n";
        host.write("volumes/OVF ENV/ovf-env.xml", xml.as_bytes(), 0o644).unwrap();
        let items: Vec<_> = ovf(&host).unwrap().unwrap().into_iter().map(|i| (i.key, i.value)).collect();
        assert_eq!(items, [("hostname".to_string(), "a&b".into()), ("url".into(), "x=1".into())]);
        host.write("volumes/OVF ENV/ovf-env.xml", &xml.as_bytes()[..xml.len() - 5], 0o644).unwrap();
        assert!(ovf(&host).unwrap().is_err());
    }
}
