//! The subsystem `layer@msb`: takes what was written in a guest of an image since it was asked last, as a layer for that
//! image.
//!
//! For root only. It ends every process that is not the agent's, writes the layer to standard output as a tar archive with
//! whiteouts as the OCI image specification has them, and puts a new, empty layer on top of it, in which the guest goes on.
//! Exit status 0 says that all of that was done; anything else, with the reason on standard error, that the archive is of
//! no use. The first call gives an empty archive: what the guest itself wrote when it started is no part of any layer.

/// The name of the subsystem.
pub const SUBSYSTEM: &str = "layer@msb";
