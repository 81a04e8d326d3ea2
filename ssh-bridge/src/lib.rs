//! The host end of SSH into an msb sandbox.
