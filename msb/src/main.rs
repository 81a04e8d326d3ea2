//! MicroVM sandboxes on KVM that stock ssh reaches with no network port.
fn main() {}
