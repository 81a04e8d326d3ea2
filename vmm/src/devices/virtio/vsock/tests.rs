//! Tests of the whole device, with a driver made of guest memory and clients made of Unix sockets.

mod bounds;
mod close;
mod connect;
mod data;
mod driver;
mod event_loop;
mod malformed;
mod random;
mod restored;
mod vm;
