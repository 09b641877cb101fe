package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// nginxProxy is nginx between TLS and TLS, which as ours checks its upstream's
// certificate, keeps connections to it open, and writes no body to the disk.
const nginxProxy = `
		listen %%s ssl backlog=4096;
		location / {
			proxy_pass https://origin; proxy_http_version 1.1;
			proxy_set_header Connection ""; proxy_set_header Host %[1]s;
			proxy_ssl_verify on; proxy_ssl_trusted_certificate %[2]s; proxy_ssl_name %[1]s; proxy_ssl_server_name on;
			proxy_buffer_size 64k; proxy_buffers 16 64k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0;
		}`

// nginxServer is the nginx that is compared with.
type nginxServer struct {
	address string
	pid     int
}

// nginxProxy is started when it is first needed.
func (b *bench) nginxProxy() (*nginxServer, error) {
	if b.nginx == nil {
		address, pid, err := b.startNginx("proxy", fmt.Sprintf(nginxProxy, originName, b.origin.ca))
		if err != nil {
			return nil, err
		}
		b.nginx = &nginxServer{address, pid}
	}
	return b.nginx, nil
}

// processes are nginx's master and its workers.
func (n *nginxServer) processes() ([]int, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", n.pid, n.pid))
	if err != nil {
		return nil, err
	}
	pids := []int{n.pid}
	for _, word := range strings.Fields(string(content)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func (b *bench) startMitmproxy() (string, error) {
	address, err := freePort()
	if err != nil {
		return "", err
	}
	_, port, _ := strings.Cut(address, ":")
	_, err = b.serve(address, "mitmdump", "-q", "--mode", "reverse:https://"+b.origin.address,
		"--listen-host", "127.0.0.1", "--listen-port", port, "--certs", "*="+b.origin.pair,
		"--set", "confdir="+filepath.Join(b.folder, "mitmproxy"),
		"--set", "ssl_verify_upstream_trusted_ca="+b.origin.ca, "--set", "keep_host_header=true")
	return address, err
}

// https measures small requests.
func (b *bench) https() (*Results, error) {
	nginx, err := b.nginxProxy()
	if err != nil {
		return nil, err
	}
	mitmproxy, err := b.startMitmproxy()
	if err != nil {
		return nil, err
	}
	kept, err := alternate(b.rounds(7),
		b.wrk("agent", "", 32),
		b.wrk("nginx", nginx.address, 32),
		b.wrk("mitmproxy", mitmproxy, 32))
	if err != nil {
		return nil, err
	}
	const name = "HTTPS 1 KiB, 32 connections"
	results := &Results{Figures: []Figure{
		{Name: name + ", keep-alive", Unit: "requests/s", Ours: kept[0][0], Other: &kept[1][0], Target: ratioOfAtLeast(0.8)},
		{Name: name + ", keep-alive", Unit: "requests/s", Ours: kept[0][0], Other: &kept[2][0], Target: ratioOfAtLeast(25)},
	}}
	for _, version := range []string{"1.3", "1.2"} {
		conf, err := b.openSSL(version)
		if err != nil {
			return nil, err
		}
		anew, err := alternate(b.rounds(7),
			b.wrkAnew("agent", "", conf),
			b.wrkAnew("nginx", nginx.address, conf))
		if err != nil {
			return nil, err
		}
		results.Figures = append(results.Figures, Figure{Name: name + ", each request a new one, TLS " + version,
			Unit: "requests/s", Ours: anew[0][0], Other: &anew[1][0], Target: ratioOfAtLeast(0.8)})
	}
	return results, nil
}

// openSSL writes the configuration with which OpenSSL's programs speak one version of TLS.
func (b *bench) openSSL(version string) (path string, err error) {
	path = filepath.Join(b.work, "tls-"+version+".cnf")
	return path, os.WriteFile(path, fmt.Appendf(nil, `openssl_conf = programs
[programs]
ssl_conf = tls
[tls]
system_default = version
[version]
MinProtocol = TLSv%[1]s
MaxProtocol = TLSv%[1]s
`, version), 0o644)
}

// wrk loads a proxy on the host, or without an address a run's from within.
func (b *bench) wrk(name, address string, connections int) contender {
	return single(name, func() (float64, error) {
		return b.outputOfWrk(b.wrkCommand(address, connections, b.seconds(4)))
	})
}

// wrkAnew does with a connection for each request.
func (b *bench) wrkAnew(name, address, conf string) contender {
	return single(name, func() (float64, error) {
		cmd := b.wrkCommand(address, 32, b.seconds(4), "-H", "Connection: close")
		cmd.Env = append(cmd.Env, "OPENSSL_CONF="+conf)
		return b.outputOfWrk(cmd)
	})
}

func (b *bench) wrkCommand(address string, connections, seconds int, more ...string) *exec.Cmd {
	args := append([]string{"-t1", "-c" + strconv.Itoa(connections), fmt.Sprintf("-d%ds", seconds), "--timeout", "60s"}, more...)
	if address == "" {
		return b.inRun([]string{"--env", "OPENSSL_CONF"}, append(append([]string{"wrk"}, args...), "https://"+originName+"/1k")...)
	}
	return b.command("wrk", append(args, "https://"+address+"/1k")...)
}

func (b *bench) outputOfWrk(cmd *exec.Cmd) (float64, error) {
	out, err := b.output(cmd)
	if err != nil {
		return 0, err
	}
	return readWrk(out)
}

var (
	wrkRate = regexp.MustCompile(`Requests/sec: +([0-9.]+)`)
	h2Rate  = regexp.MustCompile(`finished in .*, ([0-9.]+) req/s`)
	h2Sound = regexp.MustCompile(`requests: .* 0 failed, 0 errored, 0 timeout`)
)

// readWrk returns requests per second. All must have been answered, and with 200.
func readWrk(out string) (float64, error) {
	rate := wrkRate.FindStringSubmatch(out)
	if rate == nil || strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") {
		return 0, fmt.Errorf("wrk says:\n%s", out)
	}
	v, err := strconv.ParseFloat(rate[1], 64)
	if err == nil && v == 0 {
		err = errors.New("no request was answered")
	}
	return v, err
}

// http2 measures small requests that share a connection.
func (b *bench) http2() (*Results, error) {
	nghttpx, err := b.startNghttpx()
	if err != nil {
		return nil, err
	}
	h2load := func(name, address string) contender {
		return single(name, func() (float64, error) {
			args := []string{"-c1", "-m100", "-t1", fmt.Sprintf("-D%d", b.seconds(4))}
			cmd := b.inRun(nil, append(append([]string{"h2load"}, args...), "https://"+originName+"/1k")...)
			if address != "" {
				cmd = b.command("h2load", append(args, "https://"+address+"/1k")...)
			}
			out, err := b.output(cmd)
			if err != nil {
				return 0, err
			}
			rate := h2Rate.FindStringSubmatch(out)
			if rate == nil || !h2Sound.MatchString(out) || !strings.Contains(out, "protocol: h2") || !strings.Contains(out, " 0 4xx, 0 5xx") {
				return 0, fmt.Errorf("h2load says:\n%s", out)
			}
			return strconv.ParseFloat(rate[1], 64)
		})
	}
	series, err := alternate(b.rounds(7), h2load("agent", ""), h2load("nghttpx", nghttpx))
	if err != nil {
		return nil, err
	}
	return &Results{Figures: []Figure{
		{Name: "HTTP/2 1 KiB, 100 streams on one connection", Unit: "requests/s", Ours: series[0][0], Other: &series[1][0], Target: ratioOfAtLeast(0.8)},
	}}, nil
}

func (b *bench) startNghttpx() (string, error) {
	address, err := freePort()
	if err != nil {
		return "", err
	}
	comma := func(address string) string { return strings.Replace(address, ":", ",", 1) }
	_, err = b.serve(address, "nghttpx", "--conf=/dev/null", "--frontend="+comma(address), "--no-ocsp", "--workers="+strconv.Itoa(b.machine.Processors),
		"--backend="+comma(b.origin.address)+";;proto=h2;tls;sni="+originName, "--cacert="+b.origin.ca, b.origin.pair, b.origin.pair)
	return address, err
}
