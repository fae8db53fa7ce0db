"""The loader: compiles by BCC, pins, attaches, replaces in place, and exits with LLVM's memory."""
