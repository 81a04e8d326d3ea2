//! Tests of the whole device, with a driver made of guest memory and clients made of Unix sockets.
