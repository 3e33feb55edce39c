"""What a run says about itself: metrics, progress, tables and plots. Nothing here needs torch."""
