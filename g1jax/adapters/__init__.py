"""The games behind the interfaces of other libraries, each an optional dependency."""
