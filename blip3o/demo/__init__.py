"""The demonstration: `python -m blip3o.demo` draws, scores and trains, and writes a page that shows it."""
