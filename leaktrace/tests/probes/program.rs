//! The traced program: built by each Go release that is there, and told what to do.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
};

/// Does what it is told on standard input, and answers with one line.
const SOURCE: &str = r#"package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

//go:noinline
func spawn(n int) {
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for i := 0; i < n; i++ {
		wg.Add(1)
		go wg.Done()
		if i%1000 == 999 {
			wg.Wait()
		}
	}
	wg.Wait()
	// They say that they are done before they end.
	for runtime.NumGoroutine() > before {
		runtime.Gosched()
	}
}

//go:noinline
func leak(n int, forever chan int) {
	for i := 0; i < n; i++ {
		go func() { <-forever }()
	}
}

//go:noinline
func spawnFromTimer() {
	done := make(chan bool)
	time.AfterFunc(time.Millisecond, func() { done <- true })
	<-done
}

var kept []*time.Timer

//go:noinline
func timers() {
	for i := 0; i < 10; i++ {
		kept = append(kept, time.NewTimer(time.Hour))
	}
	for _, timer := range kept[:4] {
		timer.Stop()
	}
	for _, timer := range kept[4:7] {
		timer.Reset(2 * time.Hour)
	}
	ticker := time.NewTicker(time.Millisecond)
	for i := 0; i < 5; i++ {
		<-ticker.C
	}
	ticker.Stop()
}

func main() {
	forever := make(chan int)
	lines := bufio.NewScanner(os.Stdin)
	fmt.Println("ready")
	for lines.Scan() {
		var what string
		var n int
		fmt.Sscan(lines.Text(), &what, &n)
		start := time.Now()
		switch what {
		case "spawn":
			spawn(n)
		case "leak":
			leak(n, forever)
		case "timers":
			timers()
		case "fromtimer":
			spawnFromTimer()
		}
		fmt.Println(what, time.Since(start).Nanoseconds())
	}
}
"#;

/// Runs the check with the program built by each release that is there; says why when it does not.
pub fn on_each_release(releases: &[&str], check: impl Fn(&Path, u32)) {
    let me = fs::metadata("/proc/self").expect("procfs");
    if std::os::unix::fs::MetadataExt::uid(&me) != 0 {
        println!("skipped: probes need root");
        return;
    }
    for release in releases {
        match build(release) {
            Some(binary) => {
                println!("Go {release}");
                let minor = release.split_once('.').expect("a release").1;
                check(&binary, minor.parse().expect("a number"));
            }
            None => println!("skipped: no Go {release} under LEAKTRACE_GO_DIR or target/go"),
        }
    }
}

/// The program, built by some patch release of this Go release; `None` without one.
pub fn build(release: &str) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let toolchains = match env::var_os("LEAKTRACE_GO_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => workspace.join("target/go"),
    };
    let toolchain = fs::read_dir(toolchains)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("go/bin/go").is_file())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("go{release}."))
        })?;
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("probes-go{release}"));
    fs::create_dir_all(&directory).expect("a directory");
    // Tests run side by side: each process builds its own copy.
    let source = directory.join("main.go");
    let binary = directory.join(format!("main-{:?}", thread::current().id()));
    if !source.exists() || fs::read_to_string(&source).expect("source") != SOURCE {
        fs::write(&source, SOURCE).expect("writing the source");
    }
    let built = Command::new(toolchain.join("go/bin/go"))
        .args(["build", "-o"])
        .args([&binary, &source])
        .env("GOROOT", toolchain.join("go"))
        .env("GOTOOLCHAIN", "local")
        .env("GO111MODULE", "off")
        .env("GOPROXY", "off")
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", directory.join("cache"))
        .status()
        .expect("running go");
    assert!(built.success(), "the program builds with Go {release}");
    Some(binary)
}

/// The program running; killed when dropped.
pub struct Program {
    pub child: Child,
    pub input: ChildStdin,
    pub output: BufReader<ChildStdout>,
}

impl Program {
    pub fn start(binary: &Path) -> Self {
        let mut child = Command::new(binary)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env("GOMAXPROCS", "1")
            .spawn()
            .expect("starting the program");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut program = Self {
            child,
            input,
            output,
        };
        assert_eq!(program.line(), "ready\n");
        program
    }

    pub fn pid(&self) -> NonZeroU32 {
        NonZeroU32::new(self.child.id()).expect("a pid")
    }

    /// Has something done; answers with the nanoseconds that it took.
    pub fn tell(&mut self, what: &str) -> u64 {
        self.begin(what);
        self.answer()
    }

    /// Has something begun.
    pub fn begin(&mut self, what: &str) {
        writeln!(self.input, "{what}").expect("a living program");
    }

    /// Waits until it is done; answers with the nanoseconds that it took.
    pub fn answer(&mut self) -> u64 {
        let line = self.line();
        let took = line.trim().rsplit(' ').next().expect("an answer");
        took.parse().expect("nanoseconds")
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a living program");
        line
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
