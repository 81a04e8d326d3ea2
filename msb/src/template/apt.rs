//! `apt_install`: packages from a directory of the host, in a guest without a network.

pub(super) const NO_REPOSITORY: &str = "there is no repository to install packages from, and a guest has no network: name \
     a directory of .deb files (apt_repository, or --apt-repository)";

/// Where the guest has the repository meanwhile.
pub(super) const DIRECTORY: &str = "/run/msb-apt";

/// Makes an index where there is none, and installs the packages that are its arguments. All that apt writes for itself
/// stays in the directory.
const SCRIPT: &str = r#"set -e
cd /run/msb-apt
if ! [ -e Packages ] && ! [ -e Packages.gz ] && ! [ -e Packages.xz ]; then
  for deb in *.deb; do
    if ! [ -e "$deb" ]; then echo 'the repository has no .deb file' >&2; exit 1; fi
    dpkg-deb --field "$deb"
    sum=$(sha256sum "$deb")
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$deb" "$(stat -c %s "$deb")" "${sum%% *}"
  done > Packages
fi
mkdir -p .lists/partial .cache/archives/partial
echo 'deb [trusted=yes] file:/run/msb-apt ./' > .apt.list
apt() {
  DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dir::Etc::SourceList="$PWD/.apt.list" -o Dir::Etc::SourceParts=- \
    -o Dir::State::Lists="$PWD/.lists" -o Dir::Cache="$PWD/.cache" -o APT::Sandbox::User=root "$@"
}
apt update
apt install --yes --no-install-recommends -- "$@"
"#;

/// The program that installs them, with its arguments.
pub(super) fn arguments(packages: &[String]) -> Vec<Vec<u8>> {
    let words = ["sh", "-c", SCRIPT, "apt_install"].into_iter();
    let words = words.chain(packages.iter().map(String::as_str));
    words.map(|word| word.as_bytes().to_vec()).collect()
}

/// Checks that these are names of packages, with a version or an architecture maybe.
pub(super) fn check(packages: &[String]) -> Result<(), String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "+-.:=~_".contains(c);
    let is_name = |name: &&String| name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(is_part);
    match packages.iter().find(|name| !is_name(name)) {
        _ if packages.is_empty() => Err("it names no package".into()),
        Some(name) => Err(format!("'{}' is no name of a package", name.escape_debug())),
        None => Ok(()),
    }
}
