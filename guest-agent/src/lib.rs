//! PID 1 and SSH server of an msb guest.
