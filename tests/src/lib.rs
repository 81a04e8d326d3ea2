//! Whole-system tests of msb.
