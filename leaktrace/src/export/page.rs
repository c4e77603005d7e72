//! The page that people look at: one file that asks `/api/v1` and draws what it hears. It loads nothing from elsewhere.

/// The page, with its style and its script.
pub const HTML: &str = include_str!("page.html");

/// Its Content-Security-Policy: only the very style and script of the page run (build.rs takes their hashes), and only
/// this daemon may be asked. The names on the page come from traced binaries, which may be hostile.
pub const POLICY: &str = env!("LEAKTRACE_PAGE_POLICY");

#[cfg(test)]
mod tests {
    use super::*;

    /// Ways in which text could become markup or code, and attributes that the policy would block.
    const FORBIDDEN: [&str; 9] = [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "DOMParser",
        "eval(",
        "new Function",
        " style=",
        " onclick=",
    ];

    #[test]
    fn text_never_becomes_markup() {
        for word in FORBIDDEN {
            assert!(!HTML.contains(word), "the page has {word}");
        }
    }

    #[test]
    fn nothing_comes_from_elsewhere() {
        for (at, _) in HTML.match_indices("://") {
            let around = &HTML[at.saturating_sub(8)..at + 12];
            // The namespaces of SVG are names.
            assert!(around.contains("http://www.w3."), "the page has {around}");
        }
        assert!(!HTML.contains("@import") && !HTML.contains("url("));
    }

    #[test]
    fn the_policy_allows_the_page_itself_and_nothing_more() {
        assert!(POLICY.starts_with("default-src 'none'; "), "{POLICY}");
        assert_eq!(POLICY.matches("'sha256-").count(), 2, "{POLICY}");
        assert!(!POLICY.contains("unsafe"), "{POLICY}");
        for tag in ["<script>", "</script>", "<style>", "</style>"] {
            assert_eq!(HTML.matches(tag).count(), 1, "{tag}");
        }
    }
}
