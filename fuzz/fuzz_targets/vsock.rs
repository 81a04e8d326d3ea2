//! Connections between guest and host against a model of the protocol: bytes arrive once and in order, ends follow all
//! data, nobody sends without credit, each wrong packet is answered by a reset and no other is, and nothing is held for ever.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb_fuzz::Input;
use msb_fuzz::vsock::World;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut world = World::default();
    while !input.is_empty() {
        world.step(&mut input);
    }
    world.finish();
});
