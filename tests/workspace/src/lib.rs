//! Holds no code: its tests keep promises about the workspace itself.
