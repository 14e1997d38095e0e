//! The page in a browser, on a light desktop and on a dark one. Needs Chromium; without it the test
//! says that it was skipped.

use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use wharf_bench_harness::measure::calibrate;
use wharf_bench_harness::metric::{CPU_NS, Metric, P99_US, RATE};
use wharf_bench_harness::report::plot::COLOURS;
use wharf_bench_harness::report::{Definition, Method, Outcome, Report, Row};
use wharf_bench_harness::stats::Spread;

const SIZE: (usize, usize) = (1400, 1600);

fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .flat_map(|folder| {
            ["chromium", "chromium-browser", "google-chrome"].map(|it| folder.join(it))
        })
        .find(|it| it.is_file())
}

/// A report with everything that a page can have: a plot against a parameter, curves, a failure, a
/// table without places, and names that are no HTML.
fn report() -> Report {
    let metrics: Vec<Metric> = [&CPU_NS, &RATE, &P99_US].into_iter().cloned().collect();
    let row = |name: &str, value: f64| Row {
        name: name.to_owned(),
        failure: None,
        figures: [(&CPU_NS, 1.0), (&RATE, 100.0), (&P99_US, 0.1)]
            .into_iter()
            .map(|(metric, factor)| {
                let values = [0.9, 1.0, 1.1].map(|it| it * value * factor).to_vec();
                (metric.key.to_string(), Spread::of(values).expect("not empty"))
            })
            .collect(),
        rank: None,
        latencies: [0.0, 0.5, 0.9, 0.99, 0.999, 1.0]
            .map(|part| (part, value * (1.0 + 10.0 * part)))
            .to_vec(),
    };
    let outcome = |connections: u64| {
        let mut broken = row("<broken> & \"odd\"", 1.0);
        broken.figures.clear();
        broken.latencies.clear();
        broken.failure = Some("it <b>died</b>".to_owned());
        let mut outcome = Outcome {
            scenario: "echo".to_owned(),
            title: format!("echo: {connections} connections"),
            point: [("connections".to_owned(), connections)].into(),
            command: format!("wharf bench echo --set connections={connections}"),
            metrics: metrics.clone(),
            baseline: None,
            plots: vec![("connections".to_owned(), "cpu_ns".to_owned())],
            rows: vec![row("tokio", 2000.0), row("wharf", 1000.0 + connections as f64), broken],
            calibration: vec![calibrate().expect("clocks"); 3],
            others: None,
            unranked: None,
        };
        outcome.rank();
        outcome
    };
    let mut report = Report::new(Method {
        rounds: 3,
        window_ms: 200,
        warm_up_ms: 100,
        seconds_max: None,
        wharf_workers: 16,
        baseline: "wharf".to_owned(),
    });
    report.outcomes = vec![outcome(50), outcome(1000)];
    report.versions.insert("tokio".to_owned(), "tokio 1.0".to_owned());
    let definition = "What `size` means.\n\nAnd more.".to_owned();
    let about = "a test".to_owned();
    report.scenarios.insert("echo".to_owned(), Definition { about, definition });
    report
}

/// How the page looks: rows of pixels.
struct Picture {
    width: usize,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    fn read(path: &Path) -> Self {
        let decoder = png::Decoder::new(BufReader::new(File::open(path).expect("a screenshot")));
        let mut reader = decoder.read_info().expect("a PNG");
        let mut bytes = vec![0; reader.output_buffer_size().expect("it fits")];
        let info = reader.next_frame(&mut bytes).expect("a PNG");
        let channels = info.color_type.samples();
        let pixels = bytes[..info.buffer_size()]
            .chunks_exact(channels)
            .map(|it| [it[0], it[1], it[2]])
            .collect();
        Self { width: info.width as usize, pixels }
    }

    /// How many pixels have nearly this colour.
    fn count(&self, colour: [u8; 3]) -> usize {
        let near = |it: &&[u8; 3]| it.iter().zip(&colour).all(|(a, b)| a.abs_diff(*b) <= 3);
        self.pixels.iter().filter(near).count()
    }
}

fn colour(hex: &str) -> [u8; 3] {
    let part = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("a colour");
    [part(1), part(3), part(5)]
}

#[test]
fn the_page_is_readable_in_light_and_dark() {
    let Some(chromium) = chromium() else {
        // Where the harness of the tests does not swallow it.
        writeln!(std::io::stderr(), "SKIP the_page_is_readable_in_light_and_dark: no chromium")
            .expect("a standard error");
        return;
    };
    let folder = std::env::temp_dir().join(format!("wharf-bench-browser-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let page = folder.join("page.html");
    report().write_page(&page).expect("it can be written");
    let source = fs::read_to_string(&page).expect("it was written");
    for foreign in ["http:", "https:", "src=", "@import", "url("] {
        let text = source.replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains(foreign), "the page needs another file: {foreign}");
    }

    let browse = |arguments: &[String]| {
        let output = Command::new(&chromium)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-sync"])
            .args(["--disable-component-update", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", folder.join("profile").display()))
            .arg(format!("--window-size={},{}", SIZE.0, SIZE.1))
            .args(arguments)
            .arg(format!("file://{}", page.display()))
            .stderr(Stdio::null())
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{arguments:?}: {}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };

    // What the browser has understood: text from outside is text, not markup.
    let understood = browse(&["--dump-dom".to_owned()]);
    assert!(understood.contains("it &lt;b&gt;died&lt;/b&gt;"), "{understood}");
    assert!(!understood.contains("<broken>"));
    assert_eq!(understood.matches("<svg").count(), 1 + 2 * 3, "one against, three of each table");

    let (text, quiet, grid, ours) = (COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[3]);
    for (scheme, ground, pick) in [
        (1, "#ffffff", (|it| it.1) as fn((&str, &'static str, &'static str)) -> &'static str),
        (0, "#14171b", |it| it.2),
    ] {
        let shot = folder.join(format!("{scheme}.png"));
        browse(&[
            format!("--blink-settings=preferredColorScheme={scheme}"),
            format!("--screenshot={}", shot.display()),
        ]);
        let picture = Picture::read(&shot);
        assert_eq!(picture.width, SIZE.0);
        let ground = picture.count(colour(ground));
        assert!(ground > picture.pixels.len() / 2, "the ground of scheme {scheme}: {ground}");
        for (what, values, least) in [
            ("text", text, 500),
            ("quiet text and axes", quiet, 200),
            ("grid", grid, 500),
            ("our own line", ours, 300),
        ] {
            let found = picture.count(colour(pick(values)));
            assert!(found >= least, "{what} of scheme {scheme}: {found} pixels");
        }
    }
    fs::remove_dir_all(folder).expect("ours");
}
