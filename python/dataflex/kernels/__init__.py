"""The arithmetic of the projections: their specification in plain torch, and the native code that runs in its place."""
