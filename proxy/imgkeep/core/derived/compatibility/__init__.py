"""URLs of other image servers, read as requests for derived pictures: imageproxy, thumbor and Next.js."""
