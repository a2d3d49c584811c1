// Package redfish is the management controller of a lab's node: a small Redfish
// service over HTTPS with a user, a password and a certificate that it signed
// itself. What it switches is a Machine; all else (boot override, LED, virtual
// media, its own address) it only keeps, as a controller does.
package redfish

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Machine is what the controller has its hand on.
type Machine interface {
	// Powered reads the power supply.
	Powered() bool
	// SetPower switches it at once.
	SetPower(ctx context.Context, on bool) error
	// Shutdown presses the power button: the system stops by itself, as far as it
	// still can, then its power goes.
	Shutdown(ctx context.Context) error
}

// Config is who may come in, and what the controller says of itself.
type Config struct {
	User, Password string
	UUID           string // of the system
	Serial         string // of the system
	Address        string // IPv4, of the controller
	Log            *slog.Logger
}

// Service is one controller.
type Service struct {
	c   Config
	m   Machine
	mux *http.ServeMux

	mu    sync.Mutex // protects the fields below
	boot  bootOverride
	led   bool
	image string
	lan   network
}

type bootOverride struct {
	Target  string `json:"BootSourceOverrideTarget"`
	Enabled string `json:"BootSourceOverrideEnabled"`
}

type network struct {
	dhcp                      bool
	address, netmask, gateway string
}

// Resources.
const (
	root     = "/redfish/v1"
	systemID = root + "/Systems/1"
	bmcID    = root + "/Managers/1"
	chassis  = root + "/Chassis/1"
	driveID  = bmcID + "/VirtualMedia/CD"
	etherID  = bmcID + "/EthernetInterfaces/1"
)

// What the actions know.
var (
	resetTypes  = []string{"On", "ForceOff", "GracefulShutdown", "ForceRestart"}
	bootTargets = []string{"None", "Hdd", "Pxe", "Cd", "BiosSetup"}
)

// New returns the controller of a machine.
func New(c Config, m Machine) *Service {
	s := &Service{c: c, m: m, mux: http.NewServeMux(), boot: bootOverride{"None", "Disabled"}, lan: network{address: c.Address, netmask: "255.255.255.0"}}
	for path, f := range map[string]func() any{
		root: s.root, root + "/Systems": collection(systemID), root + "/Managers": collection(bmcID), root + "/Chassis": collection(chassis),
		systemID: s.system, bmcID: s.manager, bmcID + "/VirtualMedia": collection(driveID), driveID: s.drive,
		bmcID + "/EthernetInterfaces": collection(etherID), etherID: s.ethernet,
		chassis: s.chassis, chassis + "/Sensors": collection(chassis+"/Sensors/Power", chassis+"/Sensors/Temperature"),
		chassis + "/Sensors/Power": s.powerSensor, chassis + "/Sensors/Temperature": s.temperatureSensor,
	} {
		s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, f()) })
	}
	s.mux.HandleFunc("POST "+systemID+"/Actions/ComputerSystem.Reset", s.reset)
	s.mux.HandleFunc("PATCH "+systemID, s.patchSystem)
	s.mux.HandleFunc("POST "+driveID+"/Actions/VirtualMedia.InsertMedia", s.insert)
	s.mux.HandleFunc("POST "+driveID+"/Actions/VirtualMedia.EjectMedia", s.eject)
	s.mux.HandleFunc("PATCH "+etherID, s.patchEthernet)
	return s
}

// ServeHTTP lets in who has the password; the root alone is for everybody.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.URL.Path = strings.TrimSuffix(r.URL.Path, "/")
	user, password, ok := r.BasicAuth()
	same := subtle.ConstantTimeCompare([]byte(user+"\x00"+password), []byte(s.c.User+"\x00"+s.c.Password)) == 1
	if r.URL.Path != root && (!ok || !same) {
		if s.c.Log != nil {
			s.c.Log.Info("bmc refused a login", "user", user)
		}
		refuse(w, http.StatusUnauthorized, "the user or the password is wrong")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	s.mux.ServeHTTP(w, r)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("OData-Version", "4.0")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // the client may be gone
}

func refuse(w http.ResponseWriter, status int, text string) {
	answer(w, status, map[string]any{"error": map[string]any{"code": "Base.1.0.GeneralError", "message": text,
		"@Message.ExtendedInfo": []any{map[string]string{"Message": text}}}})
}

type link struct {
	ID string `json:"@odata.id"`
}

func collection(ids ...string) func() any {
	var m []link
	for _, id := range ids {
		m = append(m, link{id})
	}
	return func() any { return map[string]any{"Members": m, "Members@odata.count": len(m)} }
}

func (s *Service) root() any {
	return map[string]any{"@odata.id": root, "RedfishVersion": "1.15.0", "Name": "lab", "UUID": s.c.UUID, "Systems": link{root + "/Systems"},
		"Managers": link{root + "/Managers"}, "Chassis": link{root + "/Chassis"}}
}

func (s *Service) system() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	power := "Off"
	if s.m.Powered() {
		power = "On"
	}
	return map[string]any{"@odata.id": systemID, "Id": "1", "Name": "node", "UUID": s.c.UUID, "Manufacturer": "Roseau", "Model": "lab node", "SerialNumber": s.c.Serial,
		"PowerState": power, "LocationIndicatorActive": s.led, "Boot": s.boot,
		"Actions": map[string]any{"#ComputerSystem.Reset": map[string]any{"target": systemID + "/Actions/ComputerSystem.Reset", "ResetType@Redfish.AllowableValues": resetTypes}},
		"Links":   map[string]any{"Chassis": []link{{chassis}}, "ManagedBy": []link{{bmcID}}}}
}

func (s *Service) manager() any {
	return map[string]any{"@odata.id": bmcID, "Id": "1", "Name": "bmc", "FirmwareVersion": "lab", "ManagerType": "BMC",
		"VirtualMedia": link{bmcID + "/VirtualMedia"}, "EthernetInterfaces": link{bmcID + "/EthernetInterfaces"}}
}

func (s *Service) drive() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	act := func(verb string) any {
		return map[string]string{"target": driveID + "/Actions/VirtualMedia." + verb}
	}
	return map[string]any{"@odata.id": driveID, "Id": "CD", "Name": "virtual CD", "MediaTypes": []string{"CD", "DVD"}, "Image": s.image, "Inserted": s.image != "",
		"Actions": map[string]any{"#VirtualMedia.InsertMedia": act("InsertMedia"), "#VirtualMedia.EjectMedia": act("EjectMedia")}}
}

func (s *Service) ethernet() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := map[string]string{"Address": s.lan.address, "SubnetMask": s.lan.netmask, "Gateway": s.lan.gateway, "AddressOrigin": "Static"}
	return map[string]any{"@odata.id": etherID, "Id": "1", "Name": "lan", "DHCPv4": map[string]bool{"DHCPEnabled": s.lan.dhcp}, "IPv4Addresses": []any{a}}
}

func (s *Service) chassis() any {
	return map[string]any{"@odata.id": chassis, "Id": "1", "Name": "chassis", "ChassisType": "RackMount", "Sensors": link{chassis + "/Sensors"}}
}

// powerSensor reads what there is to read in a lab: power, or none.
func (s *Service) powerSensor() any {
	watts := 0.0
	if s.m.Powered() {
		watts = 100
	}
	return map[string]any{"@odata.id": chassis + "/Sensors/Power", "Name": "Power consumption", "Reading": watts, "ReadingUnits": "W", "Status": map[string]string{"State": "Enabled", "Health": "OK"}}
}

// temperatureSensor is one that reads nothing, as those of empty sockets do.
func (s *Service) temperatureSensor() any {
	return map[string]any{"@odata.id": chassis + "/Sensors/Temperature", "Name": "CPU temperature", "Reading": nil, "ReadingUnits": "Cel", "Status": map[string]string{"State": "Absent"}}
}

// decode reads a body; it has answered if it fails.
func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.NewDecoder(r.Body).Decode(v); err != nil {
		refuse(w, http.StatusBadRequest, "the body is not what is wanted: "+err.Error())
		return false
	}
	return true
}

func (s *Service) reset(w http.ResponseWriter, r *http.Request) {
	var in struct{ ResetType string }
	if !decode(w, r, &in) {
		return
	}
	if !slices.Contains(resetTypes, in.ResetType) {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("ResetType %q is not one of %s", in.ResetType, strings.Join(resetTypes, ", ")))
		return
	}
	on, err := s.m.Powered(), error(nil)
	ctx := context.WithoutCancel(r.Context()) // an order is carried out, whoever hangs up
	switch {
	case in.ResetType == "On" && !on:
		err = s.m.SetPower(ctx, true)
	case in.ResetType == "ForceOff" && on:
		err = s.m.SetPower(ctx, false)
	case in.ResetType == "GracefulShutdown" && on:
		err = s.m.Shutdown(ctx)
	case in.ResetType == "ForceRestart" && on:
		if err = s.m.SetPower(ctx, false); err == nil {
			err = s.m.SetPower(ctx, true)
		}
	case in.ResetType == "ForceRestart", in.ResetType == "GracefulShutdown":
		refuse(w, http.StatusConflict, "the system is off")
		return
	}
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	if s.c.Log != nil {
		s.c.Log.Info("bmc order", "reset", in.ResetType)
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Service) patchSystem(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Located *bool `json:"LocationIndicatorActive"`
		Boot    *bootOverride
	}
	if !decode(w, r, &in) {
		return
	}
	if b := in.Boot; b != nil && (!slices.Contains(bootTargets, b.Target) || !slices.Contains([]string{"Disabled", "Once", "Continuous"}, b.Enabled)) {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("Boot: %q, %q", b.Target, b.Enabled))
		return
	}
	s.mu.Lock()
	if in.Located != nil {
		s.led = *in.Located
	}
	if in.Boot != nil {
		s.boot = *in.Boot
	}
	s.mu.Unlock()
	answer(w, http.StatusOK, s.system())
}

func (s *Service) insert(w http.ResponseWriter, r *http.Request) {
	var in struct{ Image string }
	if !decode(w, r, &in) {
		return
	}
	if !strings.Contains(in.Image, "://") {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("Image %q is no URL", in.Image))
		return
	}
	s.mu.Lock()
	taken := s.image != ""
	if !taken {
		s.image = in.Image
	}
	s.mu.Unlock()
	if taken {
		refuse(w, http.StatusConflict, "there is an image in the drive")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Service) eject(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	s.image = ""
	s.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (s *Service) patchEthernet(w http.ResponseWriter, r *http.Request) {
	var in struct {
		DHCPv4              *struct{ DHCPEnabled bool }
		IPv4StaticAddresses []struct{ Address, SubnetMask, Gateway string }
	}
	if !decode(w, r, &in) {
		return
	}
	s.mu.Lock()
	if in.DHCPv4 != nil {
		s.lan.dhcp = in.DHCPv4.DHCPEnabled
	}
	if len(in.IPv4StaticAddresses) > 0 {
		a := in.IPv4StaticAddresses[0]
		s.lan.address, s.lan.netmask, s.lan.gateway = a.Address, a.SubnetMask, a.Gateway
	}
	s.mu.Unlock()
	answer(w, http.StatusOK, s.ethernet())
}

// NewCertificate makes a certificate that signs itself, as controllers do.
func NewCertificate(name string, now time.Time) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		DNSNames: []string{name}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Fingerprint is the SHA-256 of a certificate in hexadecimal digits.
func Fingerprint(c tls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	return hex.EncodeToString(sum[:])
}
