"""Derived pictures: makes them in processes of their own, and keeps what it made for as long as there is room."""
