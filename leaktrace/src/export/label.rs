//! The name of a call site: readable in a legend, the same after a rebuild that does not move the line, never an address.

use crate::ledger::CallSite;
use crate::resolve::buildinfo::BuildInfo;

/// `pkg.Func dir/file.go:42`: the last element of the package's path with the function, then the file's path
/// without the module's root.
#[must_use]
pub fn of(at: &CallSite, build: &BuildInfo) -> String {
    let short = plain(at.function.rsplit('/').next().unwrap_or(&at.function));
    let Some(file) = at.file.rsplit('/').next().filter(|file| !file.is_empty()) else {
        return short;
    };
    let line = at.line;
    match directory(&package_path(&at.function, build), &build.module) {
        "" => format!("{short} {file}:{line}"),
        directory => format!("{short} {directory}/{file}:{line}"),
    }
}

/// The import path of the package that holds a function; package main's is in the build info.
fn package_path(function: &str, build: &BuildInfo) -> String {
    let slash = function.rfind('/').map_or(0, |at| at + 1);
    let dot = function[slash..]
        .find('.')
        .map_or(function.len(), |at| slash + at);
    match &function[..dot] {
        "main" => build.path.clone(),
        path => plain(path),
    }
}

/// The linker escapes dots in the last element of a path (src/cmd/internal/objabi/path.go: PathToPrefix).
fn plain(path: &str) -> String {
    path.replace("%2e", ".")
}

/// Inside the main module the path from its root; elsewhere the last element of the package's path.
fn directory<'p>(package: &'p str, module: &str) -> &'p str {
    if !module.is_empty()
        && let Some(rest) = package.strip_prefix(module)
        && (rest.is_empty() || rest.starts_with('/'))
    {
        return rest.trim_start_matches('/');
    }
    match package {
        // Built from files named on the command line: there is no module and no directory to tell.
        "command-line-arguments" => "",
        _ => package.rsplit('/').next().unwrap_or(package),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(function: &str, file: &str, expect: &str) {
        let build = BuildInfo {
            module: "example.com/shop".to_owned(),
            path: "example.com/shop/cmd/server".to_owned(),
            ..BuildInfo::default()
        };
        let at = CallSite {
            function: function.to_owned(),
            file: file.to_owned(),
            line: 42,
        };
        assert_eq!(of(&at, &build), expect);
    }

    #[test]
    fn inside_the_module_the_path_is_from_its_root() {
        check(
            "example.com/shop/internal/cart.(*Cart).watch",
            "/build/x/internal/cart/cart.go",
            "cart.(*Cart).watch internal/cart/cart.go:42",
        );
        check(
            "main.main.func1",
            "/build/x/cmd/server/main.go",
            "main.main.func1 cmd/server/main.go:42",
        );
    }

    #[test]
    fn elsewhere_it_is_the_package_and_the_file() {
        check(
            "net/http.(*Server).Serve",
            "/usr/lib/go/src/net/http/server.go",
            "http.(*Server).Serve http/server.go:42",
        );
        check(
            "gopkg.in/yaml%2ev3.Unmarshal",
            "gopkg.in/yaml.v3@v3.0.1/yaml.go",
            "yaml.v3.Unmarshal yaml.v3/yaml.go:42",
        );
        // Another module whose name begins alike is another module.
        check(
            "example.com/shopping.Buy",
            "example.com/shopping/buy.go",
            "shopping.Buy shopping/buy.go:42",
        );
    }

    #[test]
    fn without_a_line_it_is_the_function() {
        check("(C thread)", "", "(C thread)");
        check("time.Sleep", "", "time.Sleep");
    }
}
