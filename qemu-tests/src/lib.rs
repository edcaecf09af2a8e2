//! The harness that boots images in virtual machines: vm, serial, verdict.
