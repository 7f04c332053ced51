"""Short programs that use the project; the tests run them."""
