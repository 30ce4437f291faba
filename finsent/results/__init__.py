"""What runs left on disk, read strictly, and the numbers made from it. No torch, no gradio."""
