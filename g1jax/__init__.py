"""g1jax: visual games as pure JAX functions, and a Flax vision-language policy that learns to play them."""

__version__ = "0.1.0"
