"""The proof of the search: complete grids, and what each way of searching finds in them."""
