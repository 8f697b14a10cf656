"""The receipt queue: use cases (`queue`), the Store protocol they need (`store`).

And selections (`selection`).
"""
