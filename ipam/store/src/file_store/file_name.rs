//! File names of leases and of what is kept. An id is the runtime's text, so anything: what is not plainly a name is escaped.

use meshd_model::{AttachmentId, KeptKey};

pub(crate) const LEASE: &str = ".lease";
const KEPT: &str = ".kept";
pub(crate) const TEMPORARY: &str = ".tmp";

/// What Linux takes (NAME_MAX), less what [`super::folder::Folder::keep_damaged`] puts before a name.
const NAME_MAX: usize = 255 - 6;

/// `CONTAINER@IFNAME.lease`: another one for each id, never with a slash. None if it would be too long.
pub(crate) fn of(id: &AttachmentId) -> Option<String> {
    let mut name = String::new();
    escape(&id.container_id, &mut name);
    name.push('@');
    escape(&id.ifname, &mut name);
    name.push_str(LEASE);
    (name.len() <= NAME_MAX).then_some(name)
}

/// `NAMESPACE@POD@IFNAME.kept`, with the same care.
pub(crate) fn of_kept(key: &KeptKey) -> Option<String> {
    let mut name = String::new();
    escape(&key.namespace, &mut name);
    name.push('@');
    escape(&key.pod, &mut name);
    name.push('@');
    escape(&key.ifname, &mut name);
    name.push_str(KEPT);
    (name.len() <= NAME_MAX).then_some(name)
}

fn escape(text: &str, name: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.-".contains(&byte) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02x}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Component, Path};

    fn name(container_id: &str, ifname: &str) -> Option<String> {
        of(&AttachmentId {
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
        })
    }

    #[test]
    fn an_honest_id_is_readable() {
        assert_eq!(name("3f2a", "eth0").as_deref(), Some("3f2a@eth0.lease"));
        assert_eq!(name("pod_1.a-b", "net1").as_deref(), Some("pod_1.a-b@net1.lease"));
    }

    #[test]
    fn a_hostile_id_stays_one_component_and_its_own() {
        let texts = [
            "",
            ".",
            "..",
            "../..",
            "/",
            "/etc/passwd",
            "a/b",
            "a%2fb",
            "a\0b",
            "a\nb",
            "a@b",
            "@",
            "é",
            "%",
            "a.tmp",
            "a",
        ];
        let mut seen = std::collections::BTreeMap::new();
        for a in texts {
            for b in texts {
                let name = name(a, b).unwrap();
                let components: Vec<_> = Path::new(&name).components().collect();
                assert_eq!(components, [Component::Normal(name.as_ref())], "{a:?} {b:?}");
                assert!(name.is_ascii() && !name.contains('\0'));
                assert_eq!(
                    seen.insert(name.clone(), (a, b)),
                    None,
                    "{name} stands for two ids"
                );
            }
        }
    }

    #[test]
    fn an_id_too_long_for_a_file_name_has_none() {
        assert!(name(&"a".repeat(230), "eth0").is_some());
        assert_eq!(name(&"a".repeat(250), "eth0"), None);
        assert_eq!(name(&"/".repeat(100), "eth0"), None);
    }
}
