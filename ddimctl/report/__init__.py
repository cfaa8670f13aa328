"""What people look at: pictures of latents, and pages that hold all of a run."""
