//! The JSON schema.

use super::*;

/// Each property of the schema, as `table.key`, with its own description.
fn schema_keys(schema: &serde_json::Value, path: &str, keys: &mut Vec<String>) {
    for inner in schema["anyOf"].as_array().into_iter().flatten() {
        schema_keys(inner, path, keys);
    }
    if schema["items"].is_object() {
        schema_keys(&schema["items"], path, keys);
    }
    let Some(properties) = schema["properties"].as_object() else { return };
    assert_eq!(schema["additionalProperties"], false, "{path}");
    assert!(schema["title"].is_string() && schema["description"].is_string(), "{path}");
    for (key, property) in properties {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        assert!(property["description"].as_str().is_some_and(|text| !text.is_empty()), "{path}");
        schema_keys(property, &path, keys);
        keys.push(path);
    }
}

/// How many keys are said of HTTP, below `route` and `route.rule`.
fn of_http() -> usize {
    let of_both = [
        // Below `split`.
        http_keys::Variant::KEYS.len() + file::Backend::KEYS.len(),
        http_keys::StickySplit::KEYS.len(),
        http_keys::Files::KEYS.len(),
        http_keys::Redirect::KEYS.len(),
        http_keys::Answer::KEYS.len(),
        http_keys::Replace::KEYS.len(),
        policy_keys::RequestRate::KEYS.len() + http_keys::StickySplit::KEYS.len(),
        policy_keys::Cors::KEYS.len(),
        file::RouteTimeouts::KEYS.len(),
        // For requests and for answers.
        2 * http_keys::Headers::KEYS.len(),
    ];
    2 * of_both.iter().sum::<usize>() + http_keys::Rule::KEYS.len() + http_keys::Http::KEYS.len()
}

#[test]
fn the_schema_declares_every_key() {
    let schema = json_schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let mut keys = Vec::new();
    schema_keys(&schema, "", &mut keys);
    keys.sort();
    // What may stand alone or in an array is there for both.
    keys.dedup();
    let of_pools = [
        file::Backend::KEYS.len(),
        file::Balance::KEYS.len(),
        file::Sticky::KEYS.len(),
        file::Queue::KEYS.len(),
        file::Eject::KEYS.len(),
        checks::Health::KEYS.len(),
        checks::Agent::KEYS.len(),
        backend_keys::BackendTls::KEYS.len(),
    ];
    let own = [
        // Below `route`, `route.rule` and `upstream`.
        3 * of_pools.iter().sum::<usize>(),
        of_http(),
        // For `listen` and below `listener`.
        2 * file::ServerFirst::KEYS.len(),
        file::Upstream::KEYS.len(),
        file::File::KEYS.len(),
        // For `certificates`, at the top and below `route.tls`.
        2 * tls_keys::CertificatePair::KEYS.len(),
        tls_keys::Tls::KEYS.len(),
        tls_keys::ClientAuth::KEYS.len(),
        file::Listener::KEYS.len(),
        file::Timeouts::KEYS.len(),
        file::RateLimit::KEYS.len(),
        file::ConnectionLimit::KEYS.len(),
        file::Limit::KEYS.len(),
        file::Ban::KEYS.len(),
        file::Prefixes::KEYS.len(),
        file::Dns::KEYS.len(),
        file::Admin::KEYS.len(),
        // For the account of ACME, too.
        2 * file::Secret::KEYS.len(),
        acme_keys::Acme::KEYS.len(),
        acme_keys::ExternalAccount::KEYS.len(),
        file::AccessLog::KEYS.len(),
        file::Route::KEYS.len(),
        made_up::Test::KEYS.len(),
        made_up::Hello::KEYS.len(),
        made_up::Expect::KEYS.len(),
    ];
    assert_eq!(keys.len(), own.iter().sum::<usize>(), "{keys:?}");
    for key in
        ["listen", "timeouts.half_closed", "route.timeouts.idle", "test.hello.alpn", "rate_limit.per_ip"]
    {
        assert!(keys.iter().any(|known| known == key), "{key}");
    }
    assert_eq!(schema["properties"]["listener"]["items"]["required"], serde_json::json!(["name", "bind"]));
}
