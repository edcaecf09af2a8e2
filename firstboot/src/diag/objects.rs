//! The platform's objects as a bundle may have them: without the texts of values, which people write passwords into.

use layers::{Context as _, Fault, Result};
use serde_json::Value;

/// What stands in the place of a text.
const HIDDEN: &str = "(hidden)";
/// Annotations that are ours; others may repeat the whole object.
const OURS: &str = "chasi-bod.io/";

/// The list that `kubectl get KIND -o json` prints, as YAML.
pub fn clean(list: &[u8]) -> Result<String> {
    let mut list: Value = serde_json::from_slice(list).fault(Fault::Environment, || "reading the output of `kubectl get`".into())?;
    for object in list["items"].as_array_mut().into_iter().flatten() {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
            metadata.get_mut("annotations").and_then(Value::as_object_mut).into_iter().for_each(|known| known.retain(|key, _| key.starts_with(OURS)));
        }
        if let Some(values) = object.pointer_mut("/spec/values") {
            hide(values);
        }
    }
    serde_saphyr::to_string(&list["items"]).fault(Fault::Internal, || "printing objects".into())
}

/// Keys, truth values and the shape stay, texts and numbers go.
fn hide(value: &mut Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(hide),
        Value::Array(list) => list.iter_mut().for_each(hide),
        Value::String(_) | Value::Number(_) => *value = HIDDEN.into(),
        Value::Bool(_) | Value::Null => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f6_values_keep_their_shape_and_lose_their_texts() {
        let list = br#"{"items": [{"metadata": {"name": "web", "managedFields": [{}], "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "hunter2", "chasi-bod.io/retry": "1"}},
            "spec": {"values": {"db": {"words": ["hunter2"], "pin": 4711, "tls": true}}, "valuesFrom": [{"secret": "db", "key": "k"}]},
            "status": {"phase": "READY"}}]}"#;
        let text = clean(list).unwrap();
        assert!(!text.contains("hunter2") && !text.contains("4711") && !text.contains("managedFields"), "{text}");
        let read: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read[0]["spec"]["values"], serde_json::json!({"db": {"words": [HIDDEN], "pin": HIDDEN, "tls": true}}));
        assert_eq!((&read[0]["spec"]["valuesFrom"][0]["secret"], &read[0]["status"]["phase"]), (&"db".into(), &"READY".into()));
        assert_eq!(read[0]["metadata"]["annotations"], serde_json::json!({"chasi-bod.io/retry": "1"}));
    }
}
