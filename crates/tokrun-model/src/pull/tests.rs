//! What the environment says.

use super::*;

fn read(variables: &[(&str, &str)]) -> HubOptions {
    let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    HubOptions::read(&get)
}

#[test]
fn the_hubs_own_variables_are_honoured() {
    let options = read(&[
        ("HF_ENDPOINT", "https://mirror.example/hf/"),
        ("HF_TOKEN", " hf_secret\n"),
        ("HF_HUB_OFFLINE", "True"),
        ("HF_HOME", "/srv/hf"),
        ("REQUESTS_CA_BUNDLE", "/etc/company.pem"),
    ]);
    assert_eq!(options.endpoint, "https://mirror.example/hf");
    assert_eq!(options.token.as_deref(), Some("hf_secret"));
    assert!(options.offline);
    assert_eq!(options.cache.as_deref(), Some(Path::new("/srv/hf/hub")));
    assert_eq!(options.certificates.as_deref(), Some(Path::new("/etc/company.pem")));
    let elsewhere = read(&[("HF_HOME", "/srv/hf"), ("HF_HUB_CACHE", "/mnt/cache")]);
    assert_eq!(elsewhere.cache.as_deref(), Some(Path::new("/mnt/cache")));
}

#[test]
fn unset_and_empty_variables_are_the_same() {
    for options in [read(&[]), read(&[("HF_ENDPOINT", ""), ("HF_HUB_OFFLINE", " "), ("SSL_CERT_FILE", "")])] {
        assert_eq!(options.endpoint, "https://huggingface.co");
        assert!(!options.offline && options.certificates.is_none());
    }
    assert!(!read(&[("HF_HUB_OFFLINE", "0")]).offline);
}

#[test]
fn the_token_file_of_the_hubs_client_is_read() {
    let home = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(home.path().join("token"), "hf_stored\n").expect("writable");
    let path = home.path().to_str().expect("plain");
    assert_eq!(read(&[("HF_HOME", path)]).token.as_deref(), Some("hf_stored"));
    assert_eq!(read(&[("HF_HOME", path), ("HF_TOKEN", "hf_set")]).token.as_deref(), Some("hf_set"));
}

#[test]
fn the_token_is_not_printed() {
    let printed = format!("{:?}", read(&[("HF_TOKEN", "hf_secret")]));
    assert!(!printed.contains("hf_secret"), "{printed}");
}
