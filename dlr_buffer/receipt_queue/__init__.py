"""The receipt queue: use cases (`queue`), the Store protocol they need (`store`), and selections (`selection`)."""
